use dmaspace::section::Backing;
use proptest::prelude::*;

use super::*;
use crate::program::course::Step;
use crate::program::finding::Failure;

pub(crate) const Q35: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/traces/q35-256m-type1-boot.trace"));
pub(crate) const PSERIES: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/traces/pseries-512m-spapr-v2-reset.trace"));

/// One of the traces with a few bytes changed, or lines exchanged.
pub(crate) fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let lines = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6);
    (prop::sample::select(vec![Q35, PSERIES]), lines, bytes).prop_map(|(text, exchanged, changed)| {
        let mut lines: Vec<_> = text.lines().collect();
        let n = lines.len();
        exchanged.iter().for_each(|(a, b)| lines.swap(a.index(n), b.index(n)));
        let mut text = lines.join("\n").into_bytes();
        for (place, byte) in changed {
            let place = place.index(text.len());
            text[place] = byte;
        }
        text
    })
}

fn traced(text: &str) -> Traced {
    parse(&Text::of(text.as_bytes()), None).expect("a good trace")
}

/// The course of a trace of one space.
fn course(text: &str) -> Course {
    let mut courses = traced(text).courses;
    assert_eq!(courses.len(), 1);
    courses.remove(0)
}

fn refused(text: &str) -> (usize, String) {
    let bad = parse(&Text::of(text.as_bytes()), None).expect_err("a bad trace");
    (bad.line, bad.to_string())
}

fn names(course: &Course) -> Vec<&str> {
    let sections = course.steps.iter().flat_map(|step| step.update.added());
    sections.map(Section::name).collect()
}

#[test]
fn a_boot_is_cut_where_something_goes_after_something_came() {
    let course = course(Q35);
    let shape = |step: &Step| (step.lines, step.update.removed().len(), step.update.added().len());
    let shapes: Vec<_> = course.steps.iter().map(shape).collect();
    assert_eq!(
        shapes,
        [((1, 5), 0, 5), ((7, 11), 1, 4), ((12, 19), 4, 4), ((20, 28), 4, 5), ((29, 34), 1, 5), ((35, 38), 2, 2)]
    );
    assert_eq!((course.passed_over, course.pinned_there), (0, Some(1_343_672_320)));
    assert!(!course.has_tce_windows());
}

#[test]
fn a_reset_of_a_pseries_guest_is_one_step_with_a_window_and_target_memory() {
    let course = course(PSERIES);
    let [step] = &course.steps[..] else { panic!("{course:?}") };
    assert_eq!(step.update.added_targets().len(), 1);
    let backings: Vec<_> = step.update.added().iter().map(|section| section.backing().clone()).collect();
    assert_eq!(backings, [Backing::Nothing, Backing::Translated { page: PageSize::K4 }]);
    assert_eq!(course.pinned_there, Some(0x2000_0000));
    assert!(course.has_tce_windows());
}

#[test]
fn unmatched_removals_are_accepted_and_unknown_events_are_counted() {
    let course = course(
        "qemu-system-x86_64: warning: something\n\
         1@2.3:vfio_listener_region_del region_del 0x0 - 0xfff\n\
         vfio_intx_eoi  (0000:00:03.0) EOI\n\n\
         vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]\n",
    );
    assert_eq!((course.passed_over, course.steps.len()), (3, 1));
}

#[test]
fn overlaps_and_cuts_are_refused() {
    let add = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]";
    let (line, error) = refused(&format!("{add}\n{}\n", add.replace("0xfff", "0x1fff")));
    assert_eq!(line, 2);
    assert!(error.starts_with("expected a range that does not overlap 0x0..=0xfff of line 1"), "{error}");
    let (line, error) = refused(&format!("\n{add}\nvfio_listener_region_del region_del 0x800 - 0xfff"));
    assert_eq!(line, 3);
    assert!(error.starts_with("expected a range that does not cut 0x0..=0xfff of line 2"), "{error}");
}

#[test]
fn memory_that_was_not_mapped_was_a_devices() {
    let course = course(
        "vfio_listener_region_add_ram region_add [ram] 0xfe001000 - 0xfe001fff [0x7f0000001000]\n\
         vfio_listener_region_add_no_dma_map Region \"0000:01:00.0 BAR 0 mmaps[0]\" 0xfe001000 size=0x1000 is not \
         aligned to 0x10000 and cannot be mapped for DMA\n",
    );
    let section = &course.steps[0].update.added()[0];
    assert_eq!((section.name(), course.pinned_there), ("0000:01:00.0 BAR 0 mmaps[0]", Some(0)));
    assert!(matches!(section.backing(), Backing::DeviceMemory { .. }));
}

#[test]
fn iommufds_calls_stand_in_for_a_listener_that_was_not_traced() {
    let map = "iommufd_backend_map_dma  iommufd=9 ioas=2 iova=0x0 size=0x1000 addr=0x7f0000000000 readonly=0 (0)";
    let file = "iommufd_backend_map_file_dma  iommufd=9 ioas=2 iova=0x1000 size=0x1000 fd=3 start=4096 readonly=0 (0)";
    let unmap = "iommufd_backend_unmap_dma  iommufd=9 ioas=2 iova=0x0 size=0x2000 (0)";
    let steps = course(&[map, file, unmap].join("\n")).steps;
    assert_eq!(steps.iter().map(|step| step.update.added().len()).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(steps[1].update.removed().len(), 2);
    let told = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]";
    let both = course(&[told, map].join("\n"));
    assert_eq!((both.steps.len(), both.passed_over), (1, 0));
}

const RAM: &str = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]";

#[test]
fn a_failed_call_undoes_the_listener_event_before_it() {
    let bar = "vfio_listener_region_add_ram region_add [ram] 0xfa800000 - 0xfa803fff [0x7788e9d2c000]";
    let call =
        "iommufd_backend_map_dma  iommufd=1 ioas=2 iova=0xfa800000 size=0x4000 addr=0x7788e9d2c000 readonly=0 (-1)";
    let hint = "qemu-system-x86_64: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?";
    let error = "qemu: vfio_container_dma_map(0x5555, 0xfa800000, 0x4000, 0x7788e9d2c000) = -14 (Bad address)";
    for log in
        [[RAM, bar, call, hint, error].join("\n"), [RAM, bar, error, hint].join("\n"), [RAM, hint, error].join("\n")]
    {
        let traced = traced(&log);
        assert_eq!(traced.courses[0].pinned_there, Some(0x1000), "{log}");
        assert_eq!(names(&traced.courses[0]), ["ram"], "{log}");
        let [finding] = &traced.findings[..] else { panic!("{:?}", traced.findings) };
        let Failure::Call { failed, is_device: true } = &finding.failure else { panic!("{finding:?}") };
        assert_eq!((failed.errno, failed.at.first().get()), (14, 0xfa80_0000), "{log}");
    }
}

#[test]
fn error_lines_alone_are_a_log() {
    let traced = traced("kvm: vfio_dma_map(0x5e, 0x380010000000, 0x2000000, 0x77) = -22 (Invalid argument)\nhello\n");
    let course = &traced.courses[0];
    assert_eq!((course.told_by, course.steps.len(), course.passed_over, course.pinned_there), ("log", 0, 1, None));
    assert_eq!(traced.findings.len(), 1);
}

#[test]
fn an_event_that_is_told_twice_is_of_two_containers() {
    let gone = "vfio_listener_region_del region_del 0x0 - 0xfff";
    let other = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0x1fff [0x7f0000000000]";
    let traced = traced(&[RAM, RAM, gone, gone, other, other].join("\n"));
    let steps: Vec<_> = traced.courses.iter().map(|course| course.steps.len()).collect();
    assert_eq!(steps, [2, 2]);
    let labels: Vec<_> = traced.courses.iter().map(|course| course.space.as_deref()).collect();
    assert_eq!(labels, [Some("container 1"), Some("container 2")]);
}

#[test]
fn address_spaces_of_iommufd_are_courses_of_their_own() {
    let map = |ioas: u32, size: u32| {
        format!(
            "iommufd_backend_map_dma  iommufd=9 ioas={ioas} iova=0x0 size={size:#x} addr=0x7f0000000000 readonly=0 (0)"
        )
    };
    let traced = traced(&[RAM.to_owned(), map(2, 0x1000), map(3, 0x2000), map(2, 0x1000)].join("\n"));
    let labels: Vec<_> = traced.courses.iter().map(|course| course.space.as_deref()).collect();
    assert_eq!(labels, [Some("ioas 2 of iommufd 9"), Some("ioas 3 of iommufd 9")]);
}

#[test]
fn bars_are_known_by_their_areas_where_there_is_proof() {
    let area = "vfio_region_mmap Region 0000:84:00.0 BAR 0 mmaps[0] [0x0 - 0xffffff]";
    let export = "vfio_region_dmabuf Device 0000:84:00.0, region \"0000:84:00.0 BAR 0\", offset: 0x0, size: 0x1000000";
    let below = "vfio_listener_region_add_ram region_add [ram] 0xf8000000 - 0xf8005fff [0x7f691e800000]";
    let above = "vfio_listener_region_add_ram region_add [ram] 0xf8007000 - 0xf8ffffff [0x7f691e807000]";
    let other = "vfio_listener_region_add_ram region_add [ram] 0xf9000000 - 0xf9ffffff [0x7f691d800000]";
    let bar = "0000:84:00.0 BAR 0 mmaps[0]";
    for trace in [&[RAM, area, below, above, other][..], &[RAM, area, export, below, above, other]] {
        let course = course(&trace.join("\n"));
        assert_eq!(names(&course), ["ram", bar, bar, "ram"]);
        assert_eq!(course.pinned_there, Some(0x1000 + 0x100_0000));
    }
    // Other memory may have the same size, unless it was exported.
    assert_eq!(names(&course(&[area, other].join("\n"))), ["ram"]);
    assert_eq!(names(&course(&[area, export, other].join("\n"))), [bar]);
    let small = area.replace("BAR 0", "BAR 2").replace("0xffffff", "0xfff");
    let page = "vfio_listener_region_add_ram region_add [ram] 0xfa000000 - 0xfa000fff [0x7f6b5de37000]";
    let found = course(&[area, &small, below, above, page].join("\n"));
    assert_eq!(names(&found), [bar, bar, "0000:84:00.0 BAR 2 mmaps[0]"]);
}

#[test]
fn memory_that_is_not_to_be_mapped_is_a_devices() {
    let skipped = "vfio_listener_region_skip_dma_map Region \"0000:01:00.0 CXL DPA mmaps[0]\" 0x0 size=0x1000 marked \
                   to skip IOMMU mapping";
    let course = course(&[RAM, skipped].join("\n"));
    assert_eq!((names(&course), course.pinned_there), (vec!["0000:01:00.0 CXL DPA mmaps[0]"], Some(0)));
}

#[test]
fn lines_that_a_mail_program_folded_are_one() {
    let course =
        course("VM qemu[7131]: \nvfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff \n[0x7f691e800000]\n");
    assert_eq!((course.steps.len(), course.passed_over), (1, 1));
    let error =
        "warning: vfio_container_dma_map(0x55fab36ce610, 0x380010000000, 0x108000,\n0x7fd336000000) = -22 (Invalid)";
    assert_eq!(traced(error).findings.len(), 1);
}

proptest! {
    #[test]
    fn damaged_traces_are_read_or_refused(text in damaged()) {
        if let Err(bad) = parse(&Text::of(&text), None) {
            prop_assert!(bad.line >= 1 && bad.to_string().starts_with("expected "));
        }
    }
}
