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
/// named, the first of [`JSON_FIELDS`] that is there, and none where there is none or it is no
/// number, for others may mean other things by these names, as where the text is longer than
/// [`MAX_JSON_BYTES`]. A mark of UTF-8 in front is let pass.
///
/// # Errors
/// The text is no JSON, the field is a number but no class number, or the field that was named is not
/// there or holds no class number.
pub fn read_json_label(text: &[u8], field: Option<&str>) -> Result<Option<u32>, String> {
    if field.is_none() && text.len() as u64 > MAX_JSON_BYTES {
        return Ok(None);
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let value = serde_json::from_slice::<serde_json::Value>(text)
        .map_err(|error| format!("is not JSON ({error})"))?;
    let number = |field: &str, value: &serde_json::Value| {
        let label = match value {
            serde_json::Value::String(text) => read_label(text.as_bytes()),
            // Some programs write every number with a fraction.
            other => {
                let text = other.to_string();
                read_label(text.strip_suffix(".0").unwrap_or(&text).as_bytes())
            }
        };
        label.map_err(|problem| format!("has the field {field:?}, but {problem}"))
    };
    if let Some(field) = field {
        let found = value.get(field).ok_or_else(|| format!("has no field {field:?}"))?;
        return number(field, found).map(Some);
    }
    let found = JSON_FIELDS.iter().find_map(|field| Some((field, value.get(field)?)));
    match found {
        Some((field, value)) if value.is_number() => number(field, value).map(Some),
        Some((field, value)) => Ok(number(field, value).ok()),
        None => Ok(None),
    }
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
            (r#"{"label": "#, None, Err("not JSON")),
            ("", None, Err("not JSON")),
            ("\u{feff}{\"label\": 3}", None, Ok(Some(3))),
            (r#"{"label": 1.0}"#, None, Ok(Some(1))),
            (
                r#"{"label": -1}"#,
                None,
                Err("the field \"label\", but \"-1\" is not a class number"),
            ),
            (r#"{"cls": 1.5}"#, None, Err("class number")),
            (r#"{"label": null}"#, None, Ok(None)),
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
