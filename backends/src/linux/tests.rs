use std::io::Write;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use dmaspace_abi::iommufd::{IOAS_MAP_FILE, IoasMapFile};
use dmaspace_abi::vfio;
use dmaspace_core::contract::AttachPoint;
use dmaspace_core::door::Lease;
use zerocopy::IntoBytes;

use super::*;

const NULL: &str = "/dev/null";

/// `len` bytes of memory that is there.
pub(crate) fn anonymous_memory(len: u64) -> HostMemory {
    let door = LinuxDoor::new();
    let file = door.adopt(file_of(len).into(), HandleKind::Container).expect("adopting cannot fail");
    door.mmap(file, 0, NonZeroU64::new(len).expect("not empty"), Access::READ_WRITE).expect("a file can be mapped")
}

/// A lease for commands that are judged and not made.
pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
    // SAFETY: nothing is mapped.
    unsafe { Lease::kept_by_caller(memory) }
}

/// A point for commands that reach no kernel, or a file that is no VFIO descriptor.
pub(crate) fn point(container: Handle) -> AttachPoint<'static> {
    // SAFETY: nothing is attached.
    unsafe { AttachPoint::beside_spaces(AttachPlace::Container(container)) }
}

fn file_of(len: u64) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(b"dma").expect("written");
    file.set_len(len).expect("made longer");
    file
}

fn door_with_null(kind: HandleKind) -> (LinuxDoor, Handle) {
    let door = LinuxDoor::new();
    let handle = door.open(Path::new(NULL), kind).expect("every user may open it");
    (door, handle)
}

#[test]
fn a_missing_node_says_so() {
    let door = LinuxDoor::new();
    assert_eq!(door.open(Path::new("/dev/vfio/none"), HandleKind::Group), Err(Errno::ENOENT));
    assert_eq!(format!("{door:?}"), "LinuxDoor(0 open)");
}

#[test]
fn a_number_is_never_used_again() {
    let (door, first) = door_with_null(HandleKind::Group);
    door.close(first).expect("it is open");
    let second = door.open(Path::new(NULL), HandleKind::Group).expect("opens again");
    assert_ne!(first.id(), second.id());
    assert_eq!(door.close(first), Err(Errno::EBADF));
    assert_eq!(door.close(second), Ok(()));
}

#[test]
fn a_handle_spelt_with_another_kind_is_not_open() {
    let (door, group) = door_with_null(HandleKind::Group);
    let forged = Handle::new(group.id(), HandleKind::Container);
    assert_eq!(door.close(forged), Err(Errno::EBADF));
    assert_eq!(door.ioctl(forged, &mut Command::bare(vfio::GET_API_VERSION)), Err(Errno::EBADF));
    assert_eq!(door.close(group), Ok(()));
}

#[test]
fn closing_closes_the_descriptor_once_it_is_no_longer_lent() {
    let (reader, writer) = UnixStream::pair().expect("a pair of sockets");
    let door = LinuxDoor::new();
    let handle = door.adopt(writer.into(), HandleKind::Device).expect("adopted");
    let lent = door.descriptor(handle).expect("open");
    door.close(handle).expect("it is open");
    lent.as_fd().try_clone_to_owned().map(drop).expect("it is open still");
    drop(lent);
    // With the other end closed there is nothing more to come.
    assert_eq!(io::read_to_string(reader).expect("readable"), "");
    assert_eq!(door.descriptor(handle).err(), Some(Errno::EBADF));
}

#[test]
fn descriptors_are_not_inherited() {
    let (door, handle) = door_with_null(HandleKind::Group);
    let descriptor = door.descriptor(handle).expect("open").as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("it is ours");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("every fdinfo has flags");
    let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
    assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
    assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
}

#[test]
fn the_kernel_says_enotty_where_the_door_let_a_command_through() {
    let (door, null) = door_with_null(HandleKind::Container);
    assert_eq!(door.ioctl(null, &mut Command::bare(vfio::GET_API_VERSION)), Err(Errno::ENOTTY));
}

#[test]
fn a_command_that_opens_needs_to_be_asked_as_one_and_no_other() {
    let (door, group) = door_with_null(HandleKind::Group);
    let mut name = *b"0000:00:03.0\0";
    let mut open = Command::with_bytes(vfio::GROUP_GET_DEVICE_FD, &mut name);
    assert_eq!(door.ioctl(group, &mut open), Err(Errno::EINVAL));
    assert_eq!(door.ioctl_opening(group, &mut open, HandleKind::Group), Err(Errno::EINVAL));
    assert_eq!(door.ioctl_opening(group, &mut open, HandleKind::Device), Err(Errno::ENOTTY));
    let mut unset = Command::bare(vfio::GROUP_UNSET_CONTAINER);
    assert_eq!(door.ioctl_opening(group, &mut unset, HandleKind::Device), Err(Errno::EINVAL));
}

#[test]
fn descriptors_are_taken_out_of_the_bytes_again() {
    let (door, group) = door_with_null(HandleKind::Group);
    let container = door.open(Path::new(NULL), HandleKind::Container).expect("opens");
    let mut bytes = [0; 4];
    let mut attached = [Attachment { offset: 0, what: Attached::Container(point(container)) }];
    let mut command = Command::with_bytes(vfio::GROUP_SET_CONTAINER, &mut bytes).attaching(&mut attached);
    assert_eq!(door.ioctl(group, &mut command), Err(Errno::ENOTTY));
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn the_file_behind_memory_is_named_for_the_call_only() {
    let (door, iommufd) = door_with_null(HandleKind::Iommufd);
    let file = tempfile::tempfile_in("/dev/shm").expect("a file of tmpfs");
    let file = dmaspace_core::MemoryFile::new(Arc::new(file)).expect("it is of memory");
    let never = dmaspace_core::MemoryFile::unbacked(1);
    for (file, expected) in [(file, Errno::ENOTTY), (never, Errno::EBADF)] {
        let memory = anonymous_memory(0x1000).in_file(file, 0x3000);
        let mut map = IoasMapFile { size: 40, flags: 7, start: 0x3000, length: 0x1000, ..Default::default() };
        let lease = lease(&memory);
        let mut attached = [Attachment { offset: 12, what: Attached::FileOf(&lease) }];
        let command = Command::with_bytes(IOAS_MAP_FILE, map.as_mut_bytes());
        assert_eq!(door.ioctl(iommufd, &mut command.attaching(&mut attached)), Err(expected));
        assert_eq!(map.fd, 0);
    }
}

#[test]
fn an_attached_handle_must_be_open() {
    let (door, group) = door_with_null(HandleKind::Group);
    let mut bytes = [0; 4];
    let never = Handle::new(7, HandleKind::Container);
    let mut attached = [Attachment { offset: 0, what: Attached::Container(point(never)) }];
    let mut command = Command::with_bytes(vfio::GROUP_SET_CONTAINER, &mut bytes).attaching(&mut attached);
    assert_eq!(door.ioctl(group, &mut command), Err(Errno::EBADF));
}

#[test]
fn eventfds_are_taken_out_of_the_bytes_again() {
    let (door, device) = door_with_null(HandleKind::Device);
    let null = std::fs::File::open(NULL).expect("opens");
    let head = dmaspace_abi::device::IrqSet { argsz: 28, flags: 0x24, index: 2, start: 0, count: 2 };
    let mut bytes = [head.as_bytes(), &[0; 8]].concat();
    let eventfds = [Some(null.as_fd()), None];
    let mut attached = [Attachment { offset: 20, what: Attached::Eventfds(&eventfds) }];
    let mut command = Command::with_bytes(dmaspace_abi::device::DEVICE_SET_IRQS, &mut bytes).attaching(&mut attached);
    assert_eq!(door.ioctl(device, &mut command), Err(Errno::ENOTTY));
    assert_eq!(bytes[20..], [0; 8]);
    assert_eq!(descriptors_of(&[None, None]), [0xff; 8]);
}

#[test]
fn a_descriptor_that_the_kernel_did_not_open_is_none() {
    let (door, device) = door_with_null(HandleKind::Device);
    let head = dmaspace_abi::device::FeatureHead { argsz: 16, flags: (2 << 16) | 2 };
    let mut state = dmaspace_abi::device::FeatureMigState { head, ..Default::default() };
    let mut opened = Some(device);
    let mut attached =
        [Attachment { offset: 12, what: Attached::Opened { kind: HandleKind::Migration, handle: &mut opened } }];
    let command = Command::with_bytes(dmaspace_abi::device::DEVICE_FEATURE, state.as_mut_bytes());
    assert_eq!(door.ioctl(device, &mut command.attaching(&mut attached)), Err(Errno::ENOTTY));
    assert_eq!((state.data_fd, opened), (0, None));
}

#[test]
fn streams_are_read_and_written_where_they_are() {
    let door = LinuxDoor::new();
    let file = door.adopt(file_of(16).into(), HandleKind::Migration).expect("adopted");
    assert_eq!(door.write(file, b"migration"), Ok(9));
    let mut bytes = [0; 16];
    // The file of the tests begins with 3 bytes that were written before.
    assert_eq!(door.read(file, &mut bytes), Ok(4));
}

#[test]
fn pointers_are_filled_in_for_the_call_only() {
    let mut bytes = [1; 16];
    let result = filled(&mut bytes, 4, [7; 8], |argument| {
        assert!(!argument.is_null());
        Err(Errno::ENOTTY)
    });
    assert_eq!(result, Err(Errno::ENOTTY));
    assert_eq!(bytes, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(filled(&mut bytes, 9, [7; 8], |_| Ok(0)), Err(Errno::EINVAL));
    assert_eq!(filled(&mut bytes, usize::MAX, [7; 8], |_| Ok(0)), Err(Errno::EINVAL));
}

#[test]
fn reads_and_writes_go_to_their_offset() {
    let door = LinuxDoor::new();
    let file = door.adopt(file_of(16).into(), HandleKind::Device).expect("adopted");
    assert_eq!(door.pwrite(file, 4, b"space"), Ok(5));
    let mut bytes = [0; 9];
    assert_eq!(door.pread(file, 0, &mut bytes), Ok(9));
    assert_eq!(&bytes, b"dma\0space");
    assert_eq!(door.pread(file, 16, &mut bytes), Ok(0));
    assert_eq!(door.pread(file, u64::MAX, &mut bytes), Err(Errno::EINVAL));
}

#[test]
fn a_mapping_shows_the_file_and_outlives_handle_and_door() {
    let door = LinuxDoor::new();
    let file = door.adopt(file_of(0x2000).into(), HandleKind::Device).expect("adopted");
    let len = NonZeroU64::new(0x2000).expect("not zero");
    let memory = door.mmap(file, 0, len, Access::READ_WRITE).expect("mapped");
    memory.write(0x1ffe, &[7, 8]).expect("inside");
    let mut end = [0; 2];
    door.pread(file, 0x1ffe, &mut end).expect("read");
    assert_eq!(end, [7, 8]);
    drop(door);
    let mut start = [0; 3];
    memory.read(0, &mut start).expect("inside");
    assert_eq!(&start, b"dma");
}

#[test]
fn a_mapping_knows_whether_it_is_device_memory_and_read_only() {
    let door = LinuxDoor::new();
    let device = door.adopt(file_of(0x1000).into(), HandleKind::Device).expect("adopted");
    let other = door.adopt(file_of(0x1000).into(), HandleKind::Container).expect("adopted");
    let page = NonZeroU64::new(0x1000).expect("not zero");
    let read_only = door.mmap(device, 0, page, Access::READ).expect("mapped");
    assert!(read_only.is_device_memory() && read_only.is_host_read_only() && !read_only.is_unbacked());
    let writable = door.mmap(other, 0, page, Access::READ_WRITE).expect("mapped");
    assert!(!writable.is_device_memory() && !writable.is_host_read_only());
}

#[test]
fn regions_that_cannot_be_mapped_have_a_reason() {
    let door = LinuxDoor::new();
    let file = door.adopt(file_of(0x1000).into(), HandleKind::Device).expect("adopted");
    let page = NonZeroU64::new(0x1000).expect("not zero");
    assert_eq!(door.mmap(file, 1, page, Access::READ), Err(Errno::EINVAL));
    assert_eq!(door.mmap(file, u64::MAX, page, Access::READ), Err(Errno::EOVERFLOW));
    assert_eq!(door.mmap(file, 0, NonZeroU64::MAX, Access::READ), Err(Errno::ENOMEM));
    assert_eq!(door.mmap(file, 0, page, Access::empty()), Err(Errno::EINVAL));
}

#[test]
fn the_host_page_is_the_kernels() {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("it is ours");
    let kib = smaps.lines().find_map(|line| line.strip_prefix("KernelPageSize:")?.trim().strip_suffix(" kB"));
    let bytes = kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("a size") * 1024;
    assert_eq!(LinuxDoor::new().host_page().bytes(), bytes);
}
