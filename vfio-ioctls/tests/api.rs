//! The comparison of this crate's API with the original's: one source, compiled with each, and a list of the public
//! items of both sources. README.md has the reason of each difference.
#![cfg(all(target_arch = "x86_64", feature = "kvm", feature = "v0_10"))]
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a failing arrangement is a failing test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use quote::ToTokens;
use syn::{Attribute, FnArg, ImplItem, Item, Signature, TraitItem, Visibility};

/// One use of every item, with its exact signature.
macro_rules! uses {
    ($name:ident, $api:ident) => {
        mod $name {
            #![allow(dead_code, reason = "compiled, and never run")]

            use std::any::Any;
            use std::os::fd::AsRawFd;
            use std::path::Path;
            use std::sync::Arc;

            use kvm_ioctls::DeviceFd;
            use vm_memory::GuestMemoryMmap;
            use vmm_sys_util::eventfd::EventFd;
            use $api::*;

            type Guest = GuestMemoryMmap<()>;
            type Range = DmaLoggingRange;

            fn device() {
                let _: fn(&Path, Arc<dyn VfioOps>, bool) -> Result<VfioDevice> = VfioDevice::new;
                let _: fn(&VfioDevice) -> Option<u32> = VfioDevice::iommufd_dev_id;
                let _: fn(&VfioDevice) = VfioDevice::reset;
                let _: for<'a> fn(&'a VfioDevice, u32) -> Option<&'a VfioIrq> = VfioDevice::get_irq_info;
                let _: fn(&VfioDevice, u32, u32) -> Result<()> = VfioDevice::trigger_irq;
                let _: for<'a> fn(&VfioDevice, u32, Vec<&'a EventFd>) -> Result<()> = VfioDevice::enable_irq;
                let _: for<'a> fn(&VfioDevice, u32, Vec<&'a EventFd>) -> Result<()> = VfioDevice::set_irq_resample_fd;
                let _: fn(&VfioDevice, u32) -> Result<()> = VfioDevice::disable_irq;
                let _: fn(&VfioDevice, u32) -> Result<()> = VfioDevice::unmask_irq;
                let _: for<'a> fn(&VfioDevice, Vec<&'a EventFd>) -> Result<()> = VfioDevice::enable_msi;
                let _: fn(&VfioDevice) -> Result<()> = VfioDevice::disable_msi;
                let _: for<'a> fn(&VfioDevice, Vec<&'a EventFd>) -> Result<()> = VfioDevice::enable_msix;
                let _: fn(&VfioDevice) -> Result<()> = VfioDevice::disable_msix;
                let _: fn(&VfioDevice, u32) -> u32 = VfioDevice::get_region_flags;
                let _: fn(&VfioDevice, u32) -> u64 = VfioDevice::get_region_offset;
                let _: fn(&VfioDevice, u32) -> u64 = VfioDevice::get_region_size;
                let _: fn(&VfioDevice, u32) -> Vec<VfioRegionInfoCap> = VfioDevice::get_region_caps;
                let _: fn(&VfioDevice, u32, &mut [u8], u64) = VfioDevice::region_read;
                let _: fn(&VfioDevice, u32, &[u8], u64) = VfioDevice::region_write;
                let _: fn(&VfioDevice) -> u32 = VfioDevice::max_interrupts;
                let _: fn(&VfioDevice) -> Result<Option<u64>> = VfioDevice::query_migration_support;
                let _: fn(&VfioDevice, u32) -> Result<()> = VfioDevice::set_migration_state;
                let _: fn(&VfioDevice) -> Result<u32> = VfioDevice::get_migration_state;
                let _: fn(&VfioDevice) -> Result<u64> = VfioDevice::get_mig_data_size;
                let _: fn(&VfioDevice) -> Result<PrecopyInfo> = VfioDevice::mig_get_precopy_info;
                let _: fn(&VfioDevice, &mut [u8]) -> Result<usize> = VfioDevice::read_migration_data;
                let _: fn(&VfioDevice) -> Result<Vec<u8>> = VfioDevice::read_migration_data_to_end;
                let _: fn(&VfioDevice, &[u8]) -> Result<()> = VfioDevice::write_migration_data;
                let _: fn(&VfioDevice, u64, &[Range]) -> Result<u64> = VfioDevice::start_dma_logging;
                let _: fn(&VfioDevice) -> Result<()> = VfioDevice::stop_dma_logging;
                let _: fn(&VfioDevice, Range, u64) -> Result<Vec<u64>> = VfioDevice::report_dma_logging;
                let _: fn(&VfioDevice) -> i32 = AsRawFd::as_raw_fd;
            }

            fn container() {
                let _: fn(Option<Arc<VfioDeviceFd>>) -> Result<VfioContainer> = VfioContainer::new;
                let _: unsafe fn(&VfioContainer, u64, usize, *mut u8) -> Result<()> = VfioContainer::vfio_dma_map;
                let _: fn(&VfioContainer, u64, usize) -> Result<()> = VfioContainer::vfio_dma_unmap;
                let _: unsafe fn(&VfioContainer, &Guest) -> Result<()> = VfioContainer::vfio_map_guest_memory::<Guest>;
                let _: fn(&VfioContainer, &Guest) -> Result<()> = VfioContainer::vfio_unmap_guest_memory::<Guest>;
                let _: fn(&VfioContainer) -> i32 = AsRawFd::as_raw_fd;
                let _: fn(&VfioGroup) -> i32 = AsRawFd::as_raw_fd;
                let _: unsafe fn(&VfioContainer, u64, usize, *mut u8) -> Result<()> = VfioOps::vfio_dma_map;
                let _: fn(&VfioContainer, u64, usize) -> Result<()> = VfioOps::vfio_dma_unmap;
                let _: for<'a> fn(&'a VfioContainer) -> &'a dyn Any = VfioOps::as_any;
                let _: fn(DeviceFd) -> VfioDeviceFd = VfioDeviceFd::new_from_kvm;
                let _: fn(VfioDeviceFd) -> Result<DeviceFd> = VfioDeviceFd::to_kvm;
                let _: fn(&VfioDeviceFd) -> Result<VfioDeviceFd> = VfioDeviceFd::try_clone;
            }

            fn shared<T: Send + Sync>() {}

            fn types(irq: VfioIrq, cap: VfioRegionInfoCap) -> (u32, u32, u32) {
                shared::<VfioContainer>();
                shared::<VfioDevice>();
                shared::<VfioDeviceFd>();
                let VfioIrq { flags, index, count } = irq;
                let _ = PrecopyInfo { initial_bytes: 0_u64, dirty_bytes: 0_u64 } == PrecopyInfo::default();
                let _ = DmaLoggingRange { iova: 0_u64, length: 0_u64 } == DmaLoggingRange::default();
                match cap.clone() {
                    VfioRegionInfoCap::SparseMmap(VfioRegionInfoCapSparseMmap { areas }) => {
                        let _: Vec<VfioRegionSparseMmapArea> = areas;
                    }
                    VfioRegionInfoCap::Type(VfioRegionInfoCapType { type_: _, subtype: _ }) => {}
                    VfioRegionInfoCap::MsixMappable => {}
                    VfioRegionInfoCap::Nvlink2Ssatgt(VfioRegionInfoCapNvlink2Ssatgt { tgt: _ }) => {}
                    VfioRegionInfoCap::Nvlink2Lnkspd(VfioRegionInfoCapNvlink2Lnkspd { link_speed: _ }) => {}
                }
                let _ = (VfioRegionSparseMmapArea { offset: 0, size: 0 }, format!("{irq:?} {cap:?}"));
                (flags, index, count)
            }

            fn region(region: &VfioRegion) -> String {
                format!("{:?}", region.clone())
            }

            fn error(error: VfioError) -> Option<i32> {
                let dynamic: &dyn std::error::Error = &error;
                let _ = dynamic.source();
                match error {
                    VfioError::IommuDmaMap(error) | VfioError::IommuDmaUnmap(error) => Some(error.errno()),
                    VfioError::OpenContainer(error) | VfioError::OpenGroup(error, _) => error.raw_os_error(),
                    _ => None,
                }
            }
        }
    };
}

uses!(ours, vfio_ioctls);
uses!(theirs, original);

/// The public items of a crate: by name, with their signatures. An item of an optional feature that this crate lacks
/// has its name behind it.
fn items_of(folder: &Path) -> BTreeSet<String> {
    let root = std::fs::read_to_string(folder.join("lib.rs")).expect("the crate's source");
    let exported = exports(&syn::parse_file(&root).expect("it is Rust"));
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|ext| ext == "rs") && !entry.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&entry).expect("readable");
                let file = syn::parse_file(&text).expect("it is Rust");
                for item in &file.items {
                    collect(item, &exported, &mut found);
                }
            }
        }
    }
    found
}

/// The names that a crate exports, and those that its root defines.
fn exports(root: &syn::File) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["VfioError".to_owned(), "Result".to_owned()]);
    for item in &root.items {
        if let Item::Use(item) = item {
            if matches!(item.vis, Visibility::Public(_)) {
                let text = item.tree.to_token_stream().to_string();
                names.extend(text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
            }
        }
    }
    names
}

fn collect(item: &Item, exported: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match item {
        Item::Struct(item) if exported.contains(&item.ident.to_string()) => {
            let fields = item.fields.iter().filter(|field| matches!(field.vis, Visibility::Public(_)));
            let fields: Vec<_> = fields.map(|field| format!("{}: {}", name(&field.ident), text(&field.ty))).collect();
            found.insert(tagged(format!("struct {} {{ {} }}", item.ident, fields.join(", ")), &item.attrs));
        }
        Item::Enum(item) if exported.contains(&item.ident.to_string()) => {
            for variant in &item.variants {
                let fields: Vec<_> = variant.fields.iter().map(|field| text(&field.ty)).collect();
                let variant_text = format!("{}::{}({})", item.ident, variant.ident, fields.join(", "));
                found.insert(tagged(variant_text, &variant.attrs));
            }
        }
        Item::Trait(item) if exported.contains(&item.ident.to_string()) => {
            for function in &item.items {
                if let TraitItem::Fn(function) = function {
                    found.insert(format!("{}::{}", item.ident, signature(&function.sig)));
                }
            }
        }
        Item::Type(item) if exported.contains(&item.ident.to_string()) => {
            found.insert(format!("type {}", item.ident));
        }
        Item::Impl(item) => collect_impl(item, exported, found),
        _ => {}
    }
}

fn collect_impl(item: &syn::ItemImpl, exported: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    let of = text(&item.self_ty);
    if !exported.contains(&of) {
        return;
    }
    if let Some((_, path, _)) = &item.trait_ {
        found.insert(tagged(format!("impl {} for {of}", text(path)), &item.attrs));
        return;
    }
    for function in &item.items {
        if let ImplItem::Fn(function) = function {
            if matches!(function.vis, Visibility::Public(_)) {
                let attributes = [item.attrs.as_slice(), function.attrs.as_slice()].concat();
                found.insert(tagged(format!("{of}::{}", signature(&function.sig)), &attributes));
            }
        }
    }
}

fn name(ident: &Option<syn::Ident>) -> String {
    ident.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// The tokens of a type. The original has an alias for one.
fn text(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string().replace(' ', "");
    let text = text.replace("VfioContainerDeviceHandle", "Arc<VfioDeviceFd>");
    text.replace("std::os::fd::", "").replace("std::result::", "").replace("crate::", "")
}

/// A signature without the names of its parameters.
fn signature(signature: &Signature) -> String {
    let mut types = Vec::new();
    for input in &signature.inputs {
        types.push(match input {
            FnArg::Receiver(receiver) => text(receiver),
            FnArg::Typed(typed) => text(&typed.ty),
        });
    }
    let safety = if signature.unsafety.is_some() { "unsafe " } else { "" };
    let output = text(&signature.output);
    format!("{safety}{}{}({}){output}", signature.ident, text(&signature.generics), types.join(", "))
}

/// Marks an item of a feature that this crate lacks.
fn tagged(item: String, attributes: &[Attribute]) -> String {
    let cfg: String = attributes.iter().filter(|a| a.path().is_ident("cfg")).map(text).collect();
    for feature in ["vfio_cdev", "mshv"] {
        // An item of several hypervisors is KVM's, too.
        if cfg.contains(&format!("\"{feature}\"")) && !cfg.contains("any(") {
            return format!("{item} [{feature}]");
        }
    }
    item
}

/// The source of the original, as Cargo has fetched it.
fn source_of_the_original() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--all-features", "--manifest-path", manifest])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let found = packages.iter().find(|package| package["name"] == "vfio-ioctls");
    let manifest = found.and_then(|package| package["manifest_path"].as_str()).expect("the original is a dependency");
    Path::new(manifest).parent().expect("a folder").join("src")
}

/// Items of this crate that the original lacks: a variant of an API in two versions.
const OURS_ALONE: [&str; 1] = ["VfioDevice::new(&Path, Arc<dynVfioOps>)->Result<Self>"];

#[test]
fn every_public_item_is_the_originals() {
    let ours = items_of(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    let theirs = items_of(&source_of_the_original());
    let missing: Vec<_> = theirs.difference(&ours).filter(|item| !item.ends_with(']')).collect();
    let extra: Vec<_> = ours.difference(&theirs).filter(|item| !OURS_ALONE.contains(&item.as_str())).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
    assert!(ours.len() > 100, "only {} items were found", ours.len());
}

#[test]
fn the_readme_names_every_item_that_is_absent() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("it is there");
    let theirs = items_of(&source_of_the_original());
    let absent = theirs.iter().filter(|item| item.ends_with("[vfio_cdev]") && item.starts_with("VfioDevice::"));
    let names: Vec<_> = absent.filter_map(|item| item.split(['(', '<']).next()?.strip_prefix("VfioDevice::")).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    for name in names {
        assert!(readme.contains(name), "{name}");
    }
}
