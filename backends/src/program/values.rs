//! The values of arguments that more than one command takes.

use clap::ValueEnum;
use dmaspace::PageSize;
use dmaspace::choose::BackendKind;

/// The ways to a host's IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// VFIO type1 containers.
    Type1,
    /// POWER's TCE tables.
    Spapr,
    /// The older way to them, with one window.
    SpaprV1,
    /// /dev/iommu.
    Iommufd,
    /// /dev/iommu in the place of a type1 container.
    Type1OnIommufd,
}

impl From<Backend> for BackendKind {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Type1 => Self::Type1,
            Backend::Spapr => Self::Spapr,
            Backend::SpaprV1 => Self::SpaprV1,
            Backend::Iommufd => Self::Iommufd,
            Backend::Type1OnIommufd => Self::Type1OnIommufd,
        }
    }
}

/// `4096`, `4K`, `2M`, `1G`.
pub(crate) fn page_size(text: &str) -> Result<PageSize, String> {
    let shift = match text.chars().next_back() {
        Some('K' | 'k') => 10,
        Some('M' | 'm') => 20,
        Some('G' | 'g') => 30,
        _ => 0,
    };
    let digits = text.strip_suffix(['K', 'k', 'M', 'm', 'G', 'g']).unwrap_or(text);
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let page = bytes.and_then(PageSize::from_bytes).filter(|page| *page >= PageSize::K4);
    page.ok_or_else(|| "expected a power of two from 4K on, such as 4K, 64K or 16M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_read_with_and_without_a_unit() {
        let shift = |text: &str| page_size(text).ok().map(PageSize::shift);
        assert_eq!(["4096", "4K", "64k", "16M", "1G"].map(shift), [12, 12, 16, 24, 30].map(Some));
        assert_eq!(["", "K", "3K", "2K", "4KK", "4 K", "-4K", "99999999999G"].map(shift), [None; 8]);
    }
}
