/// A data folder's name without a URL's password.
pub(super) fn without_secrets(dir: &str) -> String {
    pipeline::without_secrets(dir.as_ref()).to_string_lossy().into_owned()
}

/// A configuration's text, also one that is none, without the passwords of the URLs in it.
pub(crate) fn text_without_secrets(text: &str) -> String {
    let quotes = ['"', '\'', '\n'];
    let piece = |piece: &str| match piece.contains("://") {
        true => {
            let url = piece.trim_end_matches(quotes);
            without_secrets(url) + &piece[url.len()..]
        }
        false => piece.to_owned(),
    };
    text.split_inclusive(quotes).map(piece).collect()
}
