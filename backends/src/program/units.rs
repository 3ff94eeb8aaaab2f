//! Numbers of bytes as people read them.

/// The number in the largest unit that people can read, and exactly.
pub(crate) fn bytes(n: u128) -> String {
    if n < 1 << 10 { n.to_string() } else { format!("{} ({n})", in_units(n)) }
}

/// The number in the largest unit in which a tenth is less than a hundredth of it.
pub(crate) fn closely(n: u64) -> String {
    let is_close = |power: &usize| *power == 0 || u128::from(n) >= 10 * unit_size(*power);
    let power = (0..UNITS.len()).rev().find(|power| is_whole(n, *power) || is_close(power)).unwrap_or(0);
    let tenths = u128::from(n) * 10 / unit_size(power);
    let unit = UNITS.get(power).copied().unwrap_or("B");
    if tenths % 10 == 0 { format!("{} {unit}", tenths / 10) } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

fn is_whole(n: u64, power: usize) -> bool {
    n > 0 && u128::from(n) % unit_size(power) == 0
}

/// The number in the largest unit of which it is a multiple.
pub(crate) fn exactly(n: u64) -> String {
    let power = if n == 0 { 0 } else { (n.trailing_zeros() / 10) as usize };
    let unit = UNITS.get(power).copied().unwrap_or("B");
    format!("{} {unit}", u128::from(n) / unit_size(power))
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The number in the largest unit of which there is one, to a tenth.
pub(crate) fn in_units(n: u128) -> String {
    let (power, unit) = UNITS.iter().enumerate().rfind(|(power, _)| n >= unit_size(*power)).unwrap_or((0, &"B"));
    let tenths = n * 10 / unit_size(power);
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

fn unit_size(power: usize) -> u128 {
    1 << (10 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable_and_exact() {
        assert_eq!(bytes(0), "0");
        assert_eq!(bytes(1023), "1023");
        assert_eq!(bytes(4096), "4 KiB (4096)");
        assert_eq!(bytes(268_697_600), "256.2 MiB (268697600)");
        assert_eq!(bytes(1 << 64), "16 EiB (18446744073709551616)");
        let close = [0, 1000, 1 << 30, 1100 << 30, 1_100_602_671_104, 64 << 30, (64 << 30) + 5000].map(closely);
        let expected = ["0 B", "1000 B", "1 GiB", "1100 GiB", "1025 GiB", "64 GiB", "64 GiB"];
        assert_eq!(close, expected);
        let exact = [0, 1000, 1100 << 30, 1 << 40, 1 << 63].map(exactly);
        assert_eq!(exact, ["0 B", "1000 B", "1100 GiB", "1 TiB", "8 EiB"]);
    }
}
