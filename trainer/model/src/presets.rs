//! Presets, and tables of TOML laid one over the other.

use toml::{Table, Value};

/// Presets by name, compiled in: the files of `trainer/presets`. Each but `base` holds its differences only.
pub const PRESETS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// A configuration that does not hold together: one sentence each, with key, value and a way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wrong configuration: {}", .0.join("; "))]
pub struct Problems(pub Vec<String>);

/// Nothing, unless there are problems.
///
/// # Errors
/// [`Problems`], if there are any.
pub fn refuse(problems: Vec<String>) -> Result<(), Problems> {
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The complete table of a preset.
///
/// # Errors
/// [`Problems`]: there is none of this name; the nearest is named.
pub fn preset(name: &str) -> Result<Table, Problems> {
    let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        let problem = format!("no preset {name:?}{}", nearest(name, names.iter().copied()));
        return refuse(vec![format!("{problem} (there are {})", names.join(", "))])
            .map(|()| Table::new());
    };
    if name == "base" {
        return parse(text, name);
    }
    let mut problems = vec![];
    let table = extend(text, name, &mut problems)?;
    refuse(problems)?;
    Ok(table)
}

/// Lays the differences in `text` over the preset it extends.
///
/// # Errors
/// [`Problems`]: the text is no TOML, or there is no such preset. What does not fit the preset goes to `problems`.
pub fn extend(text: &str, name: &str, problems: &mut Vec<String>) -> Result<Table, Problems> {
    let mut change = parse(text, name)?;
    let parent = match change.remove("extends") {
        None => "base".to_owned(),
        Some(Value::String(parent)) => parent,
        Some(other) => {
            problems.push(format!("{name}: extends = {other} is not the name of a preset"));
            "base".to_owned()
        }
    };
    let mut table = preset(&parent)?;
    merge(&mut table, change, "", problems);
    Ok(table)
}

/// TOML; `name` is that of its file.
///
/// # Errors
/// [`Problems`] where it is none.
pub fn parse(text: &str, name: &str) -> Result<Table, Problems> {
    text.parse::<Table>()
        .map_err(|e| Problems(vec![format!("{name}: {}", one_line(&e.to_string()))]))
}

/// The text with single spaces.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `a.b=c` as a table. c is TOML; what is not TOML is a string.
fn assignment(text: &str) -> Result<Table, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("--set {text}: write it as key=value, such as train.batch=64"))?;
    let value = format!("v = {}", value.trim())
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(value.trim().to_owned()));
    let wrap = |value, part: &str| {
        let mut table = Table::new();
        table.insert(part.trim().to_owned(), value);
        Value::Table(table)
    };
    match key.split('.').rev().fold(value, wrap) {
        Value::Table(table) => Ok(table),
        _ => Err(format!("--set {text}: no key")),
    }
}

/// Lays `key=value` overrides over `table`.
pub fn overlay(table: &mut Table, overrides: &[String], problems: &mut Vec<String>) {
    for text in overrides {
        match assignment(text) {
            Ok(change) => merge(table, change, "", problems),
            Err(problem) => problems.push(problem),
        }
    }
}

/// Lays `change` over `base`. A key that `base` lacks, or a value of another type, is a problem.
pub fn merge(base: &mut Table, change: Table, at: &str, problems: &mut Vec<String>) {
    for (key, value) in change {
        let path = format!("{at}{key}");
        let Some(old) = base.get_mut(&key) else {
            let hint = nearest(&key, base.keys().map(String::as_str));
            problems.push(format!("unknown key {path}{hint}"));
            continue;
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => {
                merge(old, new, &format!("{path}."), problems);
            }
            (old @ Value::Float(_), Value::Integer(i)) => *old = Value::Float(i as f64),
            (old, new) if old.same_type(&new) => *old = new,
            (old, new) => problems.push(format!(
                "{path} = {new} is of type {}, expected {}",
                new.type_str(),
                old.type_str()
            )),
        }
    }
}

/// `table.key` and value of every key, in order.
pub fn flatten(at: &str, table: &Table, into: &mut Vec<(String, String)>) {
    for (key, value) in table {
        match value {
            Value::Table(table) => flatten(&format!("{at}{key}."), table, into),
            value => into.push((format!("{at}{key}"), value.to_string())),
        }
    }
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len().max(word.len()) / 2)
        .map(|(_, k)| format!("; did you mean {k:?}?"))
        .unwrap_or_default()
}
