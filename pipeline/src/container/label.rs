//! Labels: class numbers as shards and lists write them.

/// Class numbers are below this: every class has a name in memory, and a larger number is a slip.
pub const MAX_CLASSES: u32 = 1 << 20;

/// The most bytes of a member that holds a number, and of one that holds JSON.
pub const MAX_NUMBER_BYTES: u64 = 64;
/// See [`MAX_NUMBER_BYTES`].
pub const MAX_JSON_BYTES: u64 = 1 << 20;

/// The fields of a `.json` member that hold a label where none is named, the first that is there.
pub const JSON_FIELDS: [&str; 2] = ["label", "cls"];

/// A class number in ASCII decimal; white space around it is let pass.
///
/// # Errors
/// What is wrong with it, in words: `"cat" is not a class number, 0 to 1048575 in decimal`.
pub fn read_label(text: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(text);
    text.trim().parse().ok().filter(|&label| label < MAX_CLASSES).ok_or_else(|| {
        let start: String = text.chars().take(20).collect();
        format!("{start:?} is not a class number, 0 to {} in decimal", MAX_CLASSES - 1)
    })
}

/// The class number in a field of a JSON object: a number, or one in a string. With no `field`
/// named, the first of [`JSON_FIELDS`] that is there, and none where there is none that is a class
/// number, for others may mean other things by these names.
///
/// # Errors
/// The text is no JSON object, or the field that was named is not there or holds no class number.
pub fn read_json_label(text: &[u8], field: Option<&str>) -> Result<Option<u32>, String> {
    let value = serde_json::from_slice::<serde_json::Value>(text);
    let number = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => read_label(text.as_bytes()),
        other => read_label(other.to_string().as_bytes()),
    };
    let Some(field) = field else {
        let value = value.unwrap_or_default();
        let found = JSON_FIELDS.iter().find_map(|field| value.get(field));
        return Ok(found.and_then(|value| number(value).ok()));
    };
    let value = value.map_err(|error| format!("is not JSON ({error})"))?;
    let found = value.get(field).ok_or_else(|| format!("has no field {field:?}"))?;
    number(found).map(Some).map_err(|problem| format!("has the field {field:?}, but {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_class_numbers_within_bounds() {
        for (text, label) in [
            (&b"0"[..], Some(0)),
            (b" 7\n", Some(7)),
            (b"1048575", Some(MAX_CLASSES - 1)),
            (b"1048576", None),
            (b"4294967294", None),
            (b"-1", None),
            (b"1.0", None),
            (b"cat", None),
            (b"", None),
            (b"\xff", None),
        ] {
            assert_eq!(read_label(text).ok(), label, "{text:?}");
        }
        assert!(read_label(b"cat").unwrap_err().starts_with("\"cat\" is not a class number"));
    }

    #[test]
    fn labels_in_json_are_fields() {
        for (text, field, expected) in [
            (r#"{"label": 3, "cls": 4}"#, None, Ok(Some(3))),
            (r#"{"cls": "4"}"#, None, Ok(Some(4))),
            (r#"{"label": "cat"}"#, None, Ok(None)),
            (r#"{"caption": "a cat"}"#, None, Ok(None)),
            (r#"[1]"#, None, Ok(None)),
            (r#"{"class_id": 5}"#, Some("class_id"), Ok(Some(5))),
            (r#"{"class_id": 5.5}"#, Some("class_id"), Err("class number")),
            (r#"{"class_id": 5000000}"#, Some("class_id"), Err("class number")),
            (r#"{"label": 3}"#, Some("class_id"), Err("no field")),
            (r#"{"label": "#, None, Ok(None)),
            (r#"{"label": "#, Some("label"), Err("not JSON")),
        ] {
            let found = read_json_label(text.as_bytes(), field);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
