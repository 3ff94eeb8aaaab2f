//! The powers of POWER hosts, tried on their real kernels and on the soft host: windows that are created and removed,
//! registered memory, groups that join a container and leave it. Each trial opens its own descriptors and closes all of
//! them.

mod cycles;
mod groups;
mod huge;
#[cfg(target_arch = "powerpc64")]
mod kvm;
mod limit;
mod machine;
mod recorded;
mod registration;
#[cfg(target_arch = "powerpc64")]
mod vm;
mod windows;

pub use machine::Machine;

/// A trial by name.
pub struct Trial {
    /// The name in reports.
    pub name: &'static str,
    /// The trial.
    pub run: fn(&Machine),
}

macro_rules! trials {
    ($($room:ident::$name:ident)*) => {
        &[$(Trial { name: stringify!($name), run: $room::$name }),*]
    };
}

/// For every host.
pub const ALL: &[Trial] = trials! {
    windows::windows_are_made_of_every_page_the_host_has
    windows::a_third_window_is_refused_and_two_go_on
    windows::a_window_goes_with_its_entries_and_they_can_come_back
    limit::a_window_too_big_for_the_limit_changes_nothing
    registration::adjacent_blocks_are_one_registration
    registration::a_late_container_registers_the_runs_there_are
    groups::a_group_that_left_comes_back
    groups::two_groups_share_a_space_where_the_host_lets_them
    groups::two_spaces_follow_one_listener
    cycles::many_cycles_leave_nothing_behind
    cycles::cycles_with_an_open_device_leave_nothing_behind
};

/// For hosts that have huge pages.
pub const HUGE: &[Trial] = trials! {
    huge::windows_are_made_of_the_largest_pages_that_work
};

/// For hosts that can give a guest 4 GiB.
pub const LARGE: &[Trial] = trials! {
    recorded::two_windows_of_a_recorded_guest_are_two_of_the_host
};

/// The trials that need KVM, which only a machine of this architecture has.
#[cfg(target_arch = "powerpc64")]
pub const WITH_KVM: &[Trial] = trials! {
    kvm::hypercalls_are_answered_in_the_kernel
    kvm::hypercalls_are_answered_here
    kvm::a_late_host_gets_the_entries_that_the_kernel_put
};
