//! Text out of bytes, as terminals, mail programs and editors leave it.

use std::borrow::Cow;

/// The text that `bytes` stand for. Bytes that are no text become U+FFFD.
pub(super) fn decoded(bytes: &[u8]) -> Cow<'_, str> {
    if let Some(order) = utf16(bytes) {
        return Cow::Owned(of_utf16(bytes, order));
    }
    let text = match without_telnet(bytes) {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    };
    let text = without_byte_order_mark(text);
    if is_quoted_printable(&text) { Cow::Owned(of_quoted_printable(&text)) } else { text }
}

fn without_byte_order_mark(text: Cow<'_, str>) -> Cow<'_, str> {
    const MARK: char = '\u{feff}';
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_start_matches(MARK)),
        Cow::Owned(text) => Cow::Owned(text.trim_start_matches(MARK).to_owned()),
    }
}

/// The order of the bytes in a unit of UTF-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn unit(self, pair: &[u8]) -> u16 {
        match (pair, self) {
            (&[first, second], Self::Little) => u16::from_le_bytes([first, second]),
            (&[first, second], Self::Big) => u16::from_be_bytes([first, second]),
            _ => 0xfffd,
        }
    }
}

/// UTF-16 is known by its zeros: QEMU writes ASCII. A byte order mark alone tells nothing, since telnet begins with
/// the same bytes.
fn utf16(bytes: &[u8]) -> Option<Order> {
    const SAMPLE: usize = 512;
    let sample = bytes.get(..SAMPLE.min(bytes.len())).unwrap_or_default();
    let units = sample.len() / 2;
    let (high, low) = (zeros_from(sample, 0), zeros_from(sample, 1));
    match units {
        0 | 1 => None,
        _ if low * 2 > units && high * 4 < units => Some(Order::Little),
        _ if high * 2 > units && low * 4 < units => Some(Order::Big),
        _ => None,
    }
}

/// The zeros among every second byte, from the one at `first` on.
fn zeros_from(sample: &[u8], first: usize) -> usize {
    sample.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count()
}

fn of_utf16(bytes: &[u8], order: Order) -> String {
    let text: String = char::decode_utf16(bytes.chunks_exact(2).map(|pair| order.unit(pair)))
        .map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    text.trim_start_matches('\u{feff}').to_owned()
}

/// Text without telnet's commands, which begin with a byte that UTF-8 never has (RFC 854).
fn without_telnet(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&IAC) {
        return Cow::Borrowed(bytes);
    }
    let mut text = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((before, command)) =
        rest.iter().position(|byte| *byte == IAC).and_then(|at| rest.split_at_checked(at))
    {
        text.extend_from_slice(before);
        rest = command.get(len_of_command(command)..).unwrap_or_default();
    }
    text.extend_from_slice(rest);
    Cow::Owned(text)
}

const IAC: u8 = 0xff;

/// The bytes of the command at the beginning of `bytes`.
fn len_of_command(bytes: &[u8]) -> usize {
    const SE: u8 = 0xf0;
    const SB: u8 = 0xfa;
    /// A negotiation is short. Text behind one that does not end is not lost.
    const LONGEST: usize = 256;
    match bytes.get(1) {
        // WILL, WON'T, DO and DON'T name an option.
        Some(0xfb..=0xfe) => 3,
        Some(&SB) => {
            let within = bytes.get(..LONGEST.min(bytes.len())).unwrap_or_default();
            within.windows(2).position(|pair| pair == [IAC, SE]).map_or(2, |end| end + 2)
        }
        Some(SE..) => 2,
        _ => 1,
    }
}

/// A mail as it was sent (RFC 2045): lines that are continued, and letters by their number.
fn is_quoted_printable(text: &str) -> bool {
    const HEADER: &str = "content-transfer-encoding: quoted-printable";
    let is_continued = text.contains("=\n") || text.contains("=\r\n");
    is_continued
        && (text.contains("=3D") || text.contains("=20") || text.lines().any(|line| line.eq_ignore_ascii_case(HEADER)))
}

/// The text of a quoted-printable one. A line that was continued is followed by as many empty ones as it took, so
/// that numbers stay.
fn of_quoted_printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut continued = 0;
    for ended in text.split('\n') {
        let line = ended.trim_end_matches('\r');
        match line.strip_suffix('=') {
            Some(line) => {
                push_unescaped(&mut out, line);
                continued += 1;
            }
            None => {
                push_unescaped(&mut out, line);
                out.extend(std::iter::repeat_n('\n', continued + 1));
                continued = 0;
            }
        }
    }
    out
}

fn push_unescaped(out: &mut String, line: &str) {
    let mut parts = line.split('=');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let letter = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (letter, part.get(2..)) {
            (Some(letter), Some(rest)) => {
                out.push(if letter.is_ascii() { char::from(letter) } else { char::REPLACEMENT_CHARACTER });
                out.push_str(rest);
            }
            _ => {
                out.push('=');
                out.push_str(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf16_of_either_order_is_text() {
        let little: Vec<u8> = "\u{feff}Flat\nView".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "Flat\nView".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!([decoded(&little), decoded(&big)], ["Flat\nView"; 2]);
    }

    #[test]
    fn telnets_commands_are_no_text_although_they_look_like_a_byte_order_mark() {
        assert_eq!(decoded(b"\xff\xfe\x01\xff\xfb\x03text\xff\xfa\x18\x01\xff\xf0 and more\xff"), "text and more");
        assert_eq!(decoded(b"\xef\xbb\xbftext"), "text");
        assert_eq!(decoded(b"a\x80b"), "a\u{fffd}b");
    }

    #[test]
    fn a_mail_as_it_was_sent_keeps_its_line_numbers() {
        let mail = "size=3D0x1000, =\nand more\nnext=20=\n\nend";
        assert_eq!(decoded(mail.as_bytes()), "size=0x1000, and more\n\nnext \n\nend\n");
        assert_eq!(decoded(b"a=b\nc=3D"), "a=b\nc=3D", "no line is continued");
    }
}
