//! The questions that people with passed-through devices ask in public, and the program's answers.
//!
//! `docs/questions.md` is what it prints: with `UPDATE_DOCS=1` this test writes it anew.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use running::{DATA, program, status, stderr, stdout};

/// The way in which a user gets a text, and the text.
type Input = (&'static str, fn() -> String);

/// A question, and the command that answers it.
struct Question {
    /// The question, as its title.
    title: &'static str,
    /// The public reports that asked it.
    asked: &'static str,
    /// The answer, in short.
    answer: &'static str,
    /// The command, in the directory of the test data.
    command: &'static [&'static str],
    /// The text on its standard input, with the way in which a user gets it.
    input: Option<Input>,
    /// The exit status.
    status: i32,
}

/// A question on a device, which `doctor` answers on a recorded host.
struct OnDevice {
    /// The question, as its title.
    title: &'static str,
    /// The public reports that asked it.
    asked: &'static str,
    /// The answer, in short.
    answer: &'static str,
    /// The recorded host, whose output tests/hosts.rs holds against the program.
    host: &'static str,
    /// The command, as it was recorded.
    command: &'static str,
}

const ON_DEVICES: &[OnDevice] = &[
    OnDevice {
        title: "`group 40 is not viable. Please ensure all devices within the iommu_group are bound`. Which ones?",
        asked: "kubevirt#6718, kubernetes-sigs/dra-driver-nvidia-gpu#1191, 64kramsystem/vga-passthrough#15",
        answer: "The doctor names every device of the group that is in the way, and the commands for each.",
        host: "neighbour",
        command: "doctor 0000:41:00.0",
    },
    OnDevice {
        title: "`/dev/vfio` has no nodes, or not the ones that were expected. Which part is missing?",
        asked: "kubevirt#18895, #18905, kata-containers#12393, siderolabs/pkgs#1608",
        answer: "Here the kernel of a cloud image, which comes without the modules.",
        host: "cloud-kernel",
        command: "doctor 0000:03:00.1",
    },
    OnDevice {
        title: "Everything is bound to vfio-pci, and the kernel says EPERM or EINVAL when the device is attached.",
        asked: "64kramsystem/vga-passthrough#15, kata-containers/runtime#1669",
        answer: "The firmware wants memory of the device mapped one to one.",
        host: "intel-server-rmrr",
        command: "doctor 0000:07:00.0 --memory 64G",
    },
    OnDevice {
        title: "Will this device fail later, when the guest is larger?",
        asked: "kubevirt#17694, intel/gvt-linux#69",
        answer: "The doctor compares the guest's memory with the limits of this shell.",
        host: "memlock-64k",
        command: "doctor 0000:03:00.1 --memory 4G",
    },
];

impl OnDevice {
    fn section(&self, number: usize) -> String {
        let path = format!("{DATA}/hosts/recorded/{}.out", self.host);
        let recorded = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let command = format!("$ dmaspace {}\n", self.command);
        let (_, rest) = recorded.split_once(&command).unwrap_or_else(|| panic!("{path}: no {command}"));
        let said = rest.split("[exit status ").next().expect("never empty");
        let Self { title, answer, asked, .. } = self;
        format!("\n## {number}. {title}\n\n{answer}\n(Asked in {asked}.)\n\n```console\n{command}{said}```\n")
    }
}

const AMD: &str = "amd";
const DESKTOP: &str = "vtd-39bit";
const ARM: &str = "arm64-4k";

const QUESTIONS: &[Question] = &[
    Question {
        title: "QEMU says `vfio_dma_map(…) = -22 (Invalid argument)`. Why?",
        asked: "rust-vmm/vfio#12, cloud-hypervisor#4507, #6204, #7205, gnif/LookingGlass#1184",
        answer: "Give the program the error lines: it names the cause that fits address, size and error, and the cure.",
        command: &["replay", "field/error-lines-only.log", "--host", DESKTOP],
        input: None,
        status: 1,
    },
    Question {
        title: "`IOMMU_IOAS_MAP failed: Bad address, PCI BAR?` comes again and again. Is it bad?",
        asked: "kata-containers#12549, #12289, cloud-hypervisor#8895",
        answer: "Only if devices have to reach each other's memory.",
        command: &["replay", "field/error-container-dma-map.log"],
        input: None,
        status: 0,
    },
    Question {
        title: "`vfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded` in the kernel's log. Where is the limit set?",
        asked: "kubevirt#8472, #17675, intel/gvt-linux#78, smartxworks/virtink#64",
        answer: "In one of three places; the next question tells the number.",
        command: &["replay", "-"],
        input: Some(("dmesg | grep vfio | ", || "vfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded\n".to_owned())),
        status: 0,
    },
    Question {
        title: "How much locked memory does a guest need, for each device or for each VM?",
        asked: "cloud-hypervisor#165, kubevirt#17805, #17863",
        answer: "All of its memory, once for each container or address space, however many devices share it.",
        command: &["plan", "--memory", "64G", "--devices", "2", "--backend", "type1"],
        input: None,
        status: 0,
    },
    Question {
        title: "And behind an emulated IOMMU?",
        asked: "kubevirt#17805, #15947, #17619, kubevirt/enhancements#144",
        answer: "Each device has an address space of its own there, and type1 charges each.",
        command: &["plan", "--memory", "64G", "--devices", "4", "--viommu", "--backend", "type1"],
        input: None,
        status: 0,
    },
    Question {
        title: "Why does a VM of 128 GiB in hugepages fail with the 65536th mapping?",
        asked: "spdk#915, #1142, NVIDIA/nvtrust#46, kata-containers#11721",
        answer: "A type1 container takes 65535 mappings. Pieces that continue each other are one; these do not.",
        command: &["replay", "-", "--backend", "type1"],
        input: Some(("dmaspace replay - --backend type1 < hugepages.mtree", hugepages)),
        status: 1,
    },
    Question {
        title: "The GPU's BAR is outside the host's IOMMU. Must the VM stop?",
        asked: "cloud-hypervisor#7030, bpg/terraform-provider-proxmox#1353",
        answer: "No: other devices do not reach the BAR, and nothing else is lost. The cure puts it where they do.",
        command: &["replay", "field/bar-380000000000.mtree", "--host", DESKTOP, "--backend", "type1"],
        input: None,
        status: 0,
    },
    Question {
        title: "Will the BARs of two GPUs be reachable for each other, before the machines are bought?",
        asked: "cloud-hypervisor#4993, #7991, NVIDIA/open-gpu-kernel-modules#1324",
        answer: "Newer firmware puts large BARs at the upper end of the guest's addresses, and this IOMMU has 39 bits.",
        command: &[
            "plan",
            "--memory",
            "32G",
            "--devices",
            "2",
            "--bar",
            "16G",
            "--phys-bits",
            "46",
            "--host",
            DESKTOP,
            "--backend",
            "type1",
        ],
        input: None,
        status: 0,
    },
    Question {
        title: "Guests above about 990 GiB fail on an AMD host. Why?",
        asked: "cloud-hypervisor#6094, #5942, #8902",
        answer: "The hole below 1 TiB. QEMU moves the guest's memory out of its way, from machine version 7.1 on.",
        command: &["plan", "--memory", "1100G", "--host", AMD, "--amd-hole", "ignore"],
        input: None,
        status: 1,
    },
    Question {
        title: "The guest's memory lies over the range where an Arm host delivers interrupts. What now?",
        asked: "microsoft/openvmm#3559, #4372",
        answer: "An Arm host takes a PC's memory map only as far as that range. A virt machine's begins at 1 GiB.",
        command: &["plan", "--machine", "pc", "--memory", "2G", "--host", ARM],
        input: None,
        status: 1,
    },
    Question {
        title: "A driver in user space has its memory at a fixed address, and the kernel says EINVAL.",
        asked: "MicronSSD/unvme#4, chimera-nas/libevpl#86",
        answer: "The address needs 40 bits.",
        command: &["replay", "field/unvme-39.mtree", "--host", DESKTOP],
        input: None,
        status: 1,
    },
    Question {
        title: "Memory will be plugged in later. Will it be mapped for devices that are there, and is it allowed?",
        asked: "cloud-hypervisor#942, #7328, kata-containers#10354, OpenDataPlane/odp#2340",
        answer: "The plan counts it as plugged, at the address where QEMU will put it.",
        command: &[
            "plan",
            "--memory",
            "8G",
            "--maxmem",
            "32G",
            "--slots",
            "4",
            "--host",
            "field/hosts/memlock-8g.json",
        ],
        input: None,
        status: 1,
    },
    Question {
        title: "What does a boot under type1 cost: how often is memory mapped, and how often torn down again?",
        asked: "cloud-hypervisor#7027, #7991, spdk#2086",
        answer: "A trace of QEMU is replayed step by step, with the calls and the bytes of each step.",
        command: &["replay", "traces/q35-256m-type1-boot.trace", "--backend", "type1"],
        input: None,
        status: 0,
    },
    Question {
        title: "A host with pages of 64 KiB: which memory do devices not reach there?",
        asked: "cloud-hypervisor#5292, #5450, #7939, kata-containers#7656",
        answer: "Memory in which no whole page of the host's lies: here the parts of a BAR around its MSI-X table.",
        command: &["replay", "field/msix-tdi.mtree", "--host", "vtd-64k", "--backend", "type1"],
        input: None,
        status: 0,
    },
    Question {
        title: "What do the TCE tables of a POWER guest take, and who pays for them?",
        asked: "DPDK patch 72478",
        answer: "Memory is registered once for the process; each PCI host bridge has tables of its own.",
        command: &["plan", "--machine", "pseries", "--memory", "512G", "--maxmem", "1T", "--devices", "4"],
        input: None,
        status: 0,
    },
];

/// 128 GiB in pages of 2 MiB, each a memory region of its own.
fn hugepages() -> String {
    const SIZE: u64 = 2 << 20;
    let mut text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n".to_owned();
    for page in 0..65_536 {
        let (first, last) = (0x2000_0000_0000 + page * SIZE, 0x2000_0000_0000 + page * SIZE + SIZE - 1);
        writeln!(text, "  {first:016x}-{last:016x} (prio 0, ram): hugepage-{page}").expect("a string takes all");
    }
    text
}

impl Question {
    fn ask(&self) -> Output {
        let (first, rest) = program().split_first().expect("never empty");
        let mut command = Command::new(first);
        command.args(rest).args(self.command).current_dir(DATA);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program is there");
        let text = self.input.map_or_else(String::new, |(_, text)| text());
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads everything");
        child.wait_with_output().expect("it ends")
    }

    /// The command as a user types it.
    fn typed(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| without_directory(word)).collect();
        let command = format!("dmaspace {}", words.join(" "));
        match self.input {
            None => command,
            Some((whole, _)) if whole.starts_with("dmaspace ") => whole.to_owned(),
            Some((source, _)) => format!("{source}{command}"),
        }
    }

    fn section(&self, number: usize) -> String {
        let output = self.ask();
        let (out, err) = (stdout(&output), stderr(&output));
        assert_eq!(status(&output), self.status, "{}: {out}{err}", self.title);
        let said = without_directory(&format!("{err}{out}"));
        format!(
            "\n## {number}. {}\n\n{}\n(Asked in {}.)\n\n```console\n$ {}\n{said}```\n",
            self.title,
            self.answer,
            self.asked,
            self.typed()
        )
    }
}

/// A text without the directories of the test data.
fn without_directory(text: &str) -> String {
    ["field/hosts/", "field/", "mtree/", "traces/"]
        .iter()
        .fold(text.to_owned(), |text, directory| text.replace(directory, ""))
}

#[test]
fn the_docs_have_every_question_with_its_answer() {
    let mut page = String::from(
        "# Questions people ask, and the commands that answer them\n\n\
         Each is a complaint that users of passed-through devices made in public, the command that one of them would \
         type, and everything that\nit prints. Guests and hosts are files of `backends/tests/data`: your own come from \
         `info mtree -f` in QEMU's monitor, and hosts are presets\nor files. Remarks and errors, which are on the \
         standard error, come first.\n",
    );
    for (question, number) in QUESTIONS.iter().zip(1..) {
        page.push_str(&question.section(number));
    }
    for (question, number) in ON_DEVICES.iter().zip(QUESTIONS.len() + 1..) {
        page.push_str(&question.section(number));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/questions.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the docs can be written");
    }
    let known = std::fs::read_to_string(path).expect("the docs are there");
    assert_eq!(page, known, "if that is as it should be: UPDATE_DOCS=1 cargo test -p dmaspace --test questions");
}

#[test]
fn there_are_fifteen_questions_and_more_and_each_has_been_asked() {
    assert!(QUESTIONS.len() + ON_DEVICES.len() >= 15, "{}", QUESTIONS.len());
    assert!(ON_DEVICES.iter().all(|question| question.asked.contains('#')));
    assert!(QUESTIONS.iter().all(|question| question.asked.contains('#') || question.asked.contains("patch")));
}
