//! The cases, by topic: the contract sentence by sentence.

mod bounds;
mod devices;
mod dirty;
mod dropping;
mod eeh;
mod failures;
mod fences;
mod kernel_tables;
mod live_update;
mod lookup;
mod mapping;
mod order;
mod pins;
mod registration;
mod replacing;
mod threads;
mod unmapping;
mod windows;

use crate::ability::Requirement;
use crate::bench::{Bench, UnderTest};

/// A case by name.
pub struct Case {
    /// The name: a sentence of the contract.
    pub name: &'static str,
    /// The topic of the contract that the case belongs to.
    pub topic: &'static str,
    /// The needs of the case.
    pub needs: &'static [Requirement],
    check: fn(&mut Bench),
}

impl Case {
    /// Runs the case on a bench of its own, and checks that the host holds nothing afterwards.
    ///
    /// # Panics
    /// When the case fails.
    pub fn run(&self, subject: &dyn UnderTest) {
        let mut bench = subject.open().prepared();
        (self.check)(&mut bench);
        bench.mend();
        let left = bench.close();
        assert_eq!(left, None, "the host still holds something after the space was dropped");
    }
}

macro_rules! cases {
    ($($topic:ident { $($name:ident $([$($need:ident),+])?;)* })*) => {
        /// All cases.
        pub const CASES: &[Case] = &[$($(Case {
            name: stringify!($name),
            topic: stringify!($topic),
            needs: &[$($(Requirement::$need),+)?],
            check: $topic::$name,
        },)*)*];
    };
}

cases! {
    mapping {
        a_mapping_is_found_until_it_is_unmapped;
        a_map_over_a_live_unit_is_refused;
        an_overlap_is_refused_by_the_live_mapping_it_touches;
        touching_is_not_overlapping;
        memory_can_be_mapped_at_several_places;
        each_access_is_kept_as_it_was_asked_for;
        whole_mappings_that_touch_stay_separate;
        units_that_continue_each_other_are_one_run;
        units_that_differ_in_access_stay_separate;
        a_mapping_holds_its_memory_until_it_is_unmapped [KeepsMappings];
        an_owner_may_look_at_the_space_when_it_is_dropped [KeepsMappings];
        a_device_reads_and_writes_mapped_memory [Dma];
        a_device_does_not_write_memory_mapped_read_only [Dma];
        a_device_reaches_nothing_after_an_unmap [Dma];
    }
    bounds {
        a_range_must_not_wrap;
        access_must_be_asked_for;
        memory_that_is_only_readable_must_not_be_mapped_for_writing;
        memory_that_is_only_readable_can_be_mapped_for_reading [MapsReadOnlyMemory];
        memory_that_is_only_readable_is_refused_where_pins_are_for_writing [RefusesReadOnlyMemory];
        unbacked_memory_is_refused_where_devices_are_real [RefusesUnbacked];
        device_memory_is_refused [RefusesDeviceMemory];
        device_memory_can_be_mapped [MapsDeviceMemory];
        a_range_must_lie_inside_one_window;
        a_range_must_not_reach_past_a_window;
        a_range_must_not_lie_in_a_hole [Hole];
        the_highest_unit_of_the_windows_can_be_mapped;
        the_bounds_must_be_aligned;
        the_host_address_must_be_aligned;
        a_unit_must_not_be_smaller_than_the_granule;
        a_range_must_be_whole_units;
    }
    order {
        a_bad_range_comes_before_missing_access;
        missing_access_comes_before_memory_that_is_only_readable;
        memory_that_is_only_readable_comes_before_unbacked_memory;
        unbacked_memory_comes_before_device_memory [RefusesUnbacked, RefusesDeviceMemory];
        device_memory_comes_before_a_fence [RefusesDeviceMemory, FailingMap, FailingUnmap];
        a_fence_comes_before_the_windows [FailingMap, FailingUnmap];
        the_windows_come_before_alignment;
        the_windows_come_before_a_window_of_the_kernel [KernelTables];
        a_window_of_the_kernel_comes_before_alignment [KernelTables];
        alignment_comes_before_the_unit;
        the_unit_comes_before_an_overlap;
        an_overlap_comes_before_registration [Registration];
        a_refusal_names_the_request_and_no_call;
    }
    lookup {
        lookup_finds_every_byte_of_a_mapping_and_none_beside_it;
        lookup_finds_nothing_outside_the_windows;
        mappings_are_listed_in_ascending_order;
        mappings_are_clipped_to_the_range;
        mappings_of_an_empty_range_are_none;
    }
    unmapping {
        unmapping_nothing_is_no_error;
        an_unmap_spans_gaps_and_counts_bytes;
        an_unmap_reaches_outside_the_windows;
        an_unmap_spans_windows [SeveralWindows];
        a_whole_unit_is_not_cut;
        an_unmap_that_cuts_one_unit_unmaps_no_other;
        any_run_of_pages_can_be_unmapped;
        a_device_reaches_the_pages_that_stay [Dma];
        half_a_page_unit_is_not_unmapped;
        an_unmapped_range_can_be_mapped_again;
    }
    replacing {
        a_replacement_needs_live_units;
        a_replacement_names_the_first_gap;
        a_replacement_must_not_cut_a_unit;
        a_gap_comes_before_a_unit_that_is_cut;
        a_replacement_is_checked_as_a_map_is;
        a_replacement_swaps_memory_and_access;
        a_replacement_says_whether_devices_could_miss_it;
        a_replacement_of_a_part_leaves_the_rest;
        a_device_reaches_the_new_memory_after_a_replacement [Dma];
        a_replacement_that_fails_leaves_the_old_mapping [FailingMap];
        a_replacement_that_cannot_be_undone_is_fenced [FailingMap, FailingUnmap];
    }
    failures {
        a_map_that_fails_changes_nothing [FailingMap];
        a_map_that_fails_in_the_middle_leaves_nothing [FailingMap, KeepsMappings];
        an_error_names_operation_range_and_call [FailingMap];
        a_device_reaches_nothing_after_a_map_that_failed [FailingMap, KeepsMappings, Dma];
        an_unmap_that_fails_once_is_tried_again [FailingUnmap];
    }
    fences {
        a_map_that_cannot_be_undone_is_fenced [FailingMap, FailingUnmap];
        an_unmap_that_fails_is_fenced [FailingUnmap];
        nothing_is_mapped_behind_a_fence [FailingMap, FailingUnmap];
        nothing_is_replaced_behind_a_fence [FailingMap, FailingUnmap];
        nothing_is_unmapped_behind_a_fence [FailingMap, FailingUnmap];
        beside_a_fence_everything_works [FailingMap, FailingUnmap];
        memory_behind_a_fence_is_held_for_ever [FailingMap, FailingUnmap, KeepsMappings];
        a_fence_keeps_the_cause [FailingMap, FailingUnmap];
        registered_memory_behind_a_fence_stays_registered [FailingMap, FailingUnmap, Registration];
        a_window_that_cannot_be_removed_is_fenced [WindowControl, FailingRemoveWindow];
        no_window_is_created_over_a_fence [SecondWindow, FailingRemoveWindow];
        no_thread_maps_behind_a_fence [FailingMap, FailingUnmap];
    }
    windows {
        windows_are_ascending_and_disjoint;
        the_generation_stays_while_the_windows_stay;
        a_window_is_granted_where_it_was_asked_for [SecondWindow];
        a_created_window_can_be_mapped [SecondWindow];
        the_generation_grows_with_every_window [SecondWindow];
        a_window_of_an_odd_size_is_refused [SecondWindow];
        a_window_of_an_unknown_page_is_refused [SecondWindow];
        a_window_over_another_is_refused [SecondWindow];
        more_windows_than_the_host_has_are_refused [SecondWindow];
        a_window_is_removed_by_its_exact_range [WindowControl];
        a_removed_window_returns_its_mappings [WindowControl];
        nothing_is_mapped_in_a_removed_window [WindowControl];
        a_removed_window_can_be_created_again [SecondWindow];
        a_larger_window_needs_a_larger_table [WindowControl];
        a_window_that_cannot_be_created_changes_nothing [SecondWindow, FailingCreateWindow];
    }
    registration {
        unregistered_memory_is_refused [Registration];
        partly_registered_memory_is_refused [Registration];
        neighbouring_registrations_serve_one_map [Registration];
        memory_is_registered_once [Registration];
        registered_memory_stays_while_it_is_mapped [Registration];
        a_registration_ends_exactly_as_it_began [Registration];
        registrations_are_listed_in_ascending_order [Registration];
        misaligned_memory_is_not_registered [Registration];
        device_memory_is_not_registered [Registration];
        memory_that_is_only_readable_is_not_registered [Registration];
        unbacked_memory_is_not_registered [Registration, RefusesUnbacked];
        a_registration_that_fails_changes_nothing [Registration, FailingRegister];
        spaces_of_one_process_share_a_registration [Registration, SecondSpace];
        spaces_of_one_process_cut_memory_alike [Registration, SecondSpace];
    }
    pins {
        shared_memory_is_shared_once [PinSharing];
        shared_memory_stays_while_it_is_mapped [PinSharing];
        sharing_ends_exactly_as_it_began [PinSharing];
        shared_memory_is_listed_in_ascending_order [PinSharing];
        misaligned_memory_is_not_shared [PinSharing];
        device_memory_is_not_shared [PinSharing];
        unbacked_memory_is_not_shared [PinSharing, RefusesUnbacked];
        sharers_are_counted [PinSharing];
        sharers_are_counted_over_spaces [PinSharing, SecondSpace];
    }
    devices {
        the_attached_device_is_listed;
        a_device_that_is_not_attached_is_not_detached [Spare];
        a_device_can_return [Reattach];
        a_change_of_devices_tells_the_windows_before_and_after [Reattach];
        mappings_stay_when_a_second_device_is_attached_and_detached [Spare];
        devices_are_listed_in_the_order_they_came [Spare];
        an_attach_that_would_strand_a_mapping_is_undone [WindowsOfTheDevice];
        an_attach_that_fails_changes_nothing [Spare, FailingAttach];
        a_detach_that_fails_changes_nothing [Spare, FailingDetach];
    }
    dropping {
        dropping_a_space_releases_everything [Leftovers];
        dropping_a_space_releases_its_memory [KeepsMappings];
        dropping_a_space_removes_windows_and_registrations [SecondWindow, Registration, Leftovers];
    }
    dirty {
        tracking_starts_once;
        nothing_is_synced_or_stopped_without_tracking;
        tracking_can_start_again_after_it_stopped;
        a_sync_of_nothing_marks_nothing;
        a_page_that_was_written_is_never_missing [Dma];
        an_unmap_reports_the_written_pages [Dma];
        a_replacement_reports_the_written_pages [Dma];
        a_mapping_made_during_tracking_is_tracked [Dma];
        a_page_is_told_again_only_if_it_may_have_been_written_again [Dma];
        memory_that_devices_only_read_is_never_marked;
        marks_lie_in_the_memory_that_is_mapped;
        nothing_is_told_after_the_end [Dma];
        a_sync_that_fails_marks_everything_it_asked_about [FailingFetchDirty];
        a_start_that_fails_tracks_nothing [FailingStartDirty];
        a_fenced_mapping_stays_dirty [FailingUnmap];
    }
    live_update {
        a_space_that_cannot_be_handed_over_says_why [NoLiveUpdate];
        nothing_changes_in_a_space_that_is_handed_over [LiveUpdate];
        a_space_that_is_handed_over_can_be_looked_at [LiveUpdate];
        a_hand_over_describes_every_mapping [LiveUpdate];
        a_second_hand_over_describes_the_same [LiveUpdate];
        a_hand_over_can_be_taken_back [LiveUpdate];
        a_device_goes_on_while_the_space_is_handed_over [LiveUpdate, Dma];
        a_space_can_adopt_its_own_hand_over [LiveUpdate];
        memory_without_a_name_is_not_handed_over [LiveUpdate];
        nothing_is_adopted_without_its_memory [LiveUpdate];
        nothing_is_adopted_from_another_backend [LiveUpdate];
        nothing_is_adopted_for_other_devices [LiveUpdate];
        nothing_is_adopted_that_was_not_mapped [LiveUpdate];
        overlapping_mappings_are_not_adopted [LiveUpdate];
        a_space_that_is_not_handed_over_is_neither_taken_back_nor_adopted;
        nothing_is_handed_over_beside_a_fence [LiveUpdate, FailingMap, FailingUnmap];
        a_hand_over_that_fails_changes_nothing [LiveUpdate, FailingInvalidate];
    }
    kernel_tables {
        nothing_is_mapped_in_a_window_of_the_kernel [KernelTables];
        a_window_of_the_kernel_is_listed [KernelTables];
        a_kernel_owned_window_shows_the_entries_of_the_kernel [KernelTables];
        a_reclaimed_window_keeps_the_entries_of_the_kernel [KernelTables];
        the_kernel_writes_for_every_device [KernelTables];
        a_window_is_left_to_the_kernel_once [KernelTables];
        only_an_exact_window_is_left_to_the_kernel [KernelTables];
        a_window_with_other_mappings_is_not_left_to_the_kernel [KernelTables];
        a_kernel_that_refuses_a_device_gets_no_window [KernelTables];
        a_window_of_the_kernel_is_not_removed [KernelTables, WindowControl];
        only_a_window_of_the_kernel_is_reclaimed [KernelTables];
    }
    eeh {
        a_device_that_works_is_in_the_normal_state [Eeh];
        a_device_is_normal_again_after_a_reset [Eeh];
        mappings_survive_a_reset [Eeh];
        no_device_is_recovered_in_an_empty_space [Eeh, Reattach];
    }
    threads {
        threads_map_beside_each_other;
        of_threads_that_map_one_range_one_succeeds;
        a_lookup_during_changes_finds_a_whole_mapping_or_none;
        an_unmap_of_everything_meets_threads_that_map;
    }
}
