//! What the loader warns of, as Python's logging has it: logger "bigbigan".

use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};

use pyo3::prelude::*;

use crate::ending::within;

/// Texts that wait for a thread that has the interpreter.
static WAITING: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Most that are kept: who never asks for a batch reads none.
const MOST: usize = 1000;

struct Queue;

/// Keeps a text for Python.
pub(crate) fn say(text: &str) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    if !text.is_empty() && waiting.len() < MOST {
        waiting.push(text.to_owned());
    }
}

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(String::from_utf8_lossy(bytes).trim());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From here on warnings are kept; once a process. Where another part of it listens already, they are its own.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = tracing_subscriber::fmt()
            .with_writer(|| Queue)
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .without_time()
            .with_target(false)
            .with_level(false)
            .try_init();
    });
}

/// Gives Python what waits. A handler that raises loses no batch: it is told of as Python tells of such.
pub(crate) fn pass_on(py: Python<'_>) {
    let waiting = std::mem::take(&mut *WAITING.lock().unwrap_or_else(PoisonError::into_inner));
    if waiting.is_empty() {
        return;
    }
    let tell = || -> PyResult<()> {
        let logger = py.import("logging")?.call_method1("getLogger", ("bigbigan",))?;
        for text in waiting {
            logger.call_method1("warning", ("%s", text))?;
        }
        Ok(())
    };
    if let Some(Err(error)) = within(tell) {
        error.write_unraisable(py, None);
    }
}
