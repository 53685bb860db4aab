//! Extended headers, and names as text.

/// What an extended header says of `key`; the last word counts.
pub(super) fn value_of<'a>(mut records: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    while !records.is_empty() {
        match record(records) {
            Some((known, value, rest)) => {
                found = if known == key { Some(value) } else { found };
                records = rest;
            }
            // What is no record is passed over by its line.
            None => match records.iter().position(|&byte| byte == b'\n') {
                Some(end) => records = &records[end + 1..],
                None => break,
            },
        }
    }
    found
}

/// Key and value of the record `LENGTH KEY=VALUE` and a newline that this begins with, and what is
/// behind it. The length tells where it ends: values may have newlines of their own.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let end = length.checked_sub(1)?;
    let record = records.get(space + 1..end)?;
    // The last newline may be missing.
    if records.get(end).is_some_and(|&byte| byte != b'\n') {
        return None;
    }
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let rest = records.get(length..).unwrap_or_default();
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// A name as text that no other name has.
pub(super) fn text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text += chunk.valid();
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text.truncate(text.trim_end_matches('\0').len());
    text
}
