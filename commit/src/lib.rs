//! The commit that a program was built from, as a macro: only the crate that calls it is compiled again when
//! the commit changes. A constant, or a build script, would have all of its package compiled again.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use proc_macro::TokenStream;

/// The commit that is checked out here, in hexadecimal, as a `&'static str`; `"unknown"` without git, or
/// outside of a checkout.
///
/// # Panics
/// Never: what it makes is Rust.
#[proc_macro]
pub fn commit(_: TokenStream) -> TokenStream {
    let (hash, watched) = checked_out().unwrap_or_else(|| ("unknown".to_owned(), vec![]));
    let mut code = "{".to_owned();
    for path in watched {
        // The compiler notes it as a source; nothing of it comes into the program.
        let _ = write!(code, "const _: &[u8] = include_bytes!({path:?});");
    }
    let _ = write!(code, "{hash:?} }}");
    code.parse().expect("a block of constants and a text")
}

/// The commit, and the files of which one changes when another is checked out or made.
fn checked_out() -> Option<(String, Vec<PathBuf>)> {
    // Of the crate that calls it, and asked now: a checkout may have been moved since this was compiled.
    let member = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let root = member.parent()?;
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Not that of a repository that a copy of the sources lies in.
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let hash = git(&["rev-parse", "--verify", "HEAD"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // A branch among the packed ones gets a file of its own with its next commit: HEAD's log tells.
    let names = ["HEAD", "packed-refs", "logs/HEAD"].into_iter().chain(branch.as_deref());
    let path = |name| Some(root.join(git(&["rev-parse", "--git-path", name])?));
    let watched = names.filter_map(path).filter(|path| path.is_file()).collect();
    Some((hash, watched))
}
