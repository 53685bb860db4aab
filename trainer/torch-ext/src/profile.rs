//! Where a step's time goes: by operator and by kernel, from libtorch's profiler (Kineto, CUPTI).

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};

use serde::{Deserialize, Serialize};

use crate::shim::outcome;

/// One operator, call of CUDA or kernel; the layout is that of `ext_span`.
#[repr(C)]
struct RawSpan {
    name: *const c_char,
    device: i64,
    thread: u64,
    start: u64,
    duration: u64,
    id: u64,
    cause: u64,
}

type Seen = extern "C" fn(*mut c_void, *const RawSpan);

unsafe extern "C" {
    fn ext_profile_start(device: c_int) -> *mut c_char;
    fn ext_profile_stop(seen: Seen, context: *mut c_void) -> *mut c_char;
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    name: String,
    /// Whether it ran on the device, not on the host.
    device: bool,
    thread: u64,
    /// Nanoseconds.
    start: u64,
    duration: u64,
    /// Of an operator.
    id: u64,
    /// Of a kernel: the operator that started it.
    cause: u64,
}

/// Whose time was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// That of kernels and copies, on the device.
    Kernels,
    /// That of operators on the host, less what they called: where the profiler saw no kernel.
    Host,
}

/// What one name comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Operator or kernel.
    pub name: String,
    /// Calls, or kernels.
    pub calls: u64,
    /// All of them together.
    pub seconds: f64,
}

/// Where the time went; most of it first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Whose.
    pub clock: Clock,
    /// All rows together.
    pub seconds: f64,
    /// By operator; `-` is what no operator started, such as what a CUDA graph does.
    pub operators: Vec<Row>,
    /// By kernel; none by the host's clock.
    pub kernels: Vec<Row>,
}

impl Profile {
    /// Profiles what `body` calls on this thread and in its backward passes, and with `device` the kernels of
    /// CUDA. `body` must wait for the device itself.
    ///
    /// # Errors
    /// In words, as libtorch has them.
    ///
    /// # Panics
    /// As `body`.
    pub fn of<T>(device: bool, body: impl FnOnce() -> T) -> Result<(T, Self), String> {
        extern "C" fn seen(context: *mut c_void, span: *const RawSpan) {
            // SAFETY: the context is the list below, which nobody else uses meanwhile; the span and its name
            // live as long as this call.
            let (all, raw, name) = unsafe {
                (&mut *context.cast::<Vec<Span>>(), &*span, CStr::from_ptr((*span).name))
            };
            let name = name.to_string_lossy().into_owned();
            let RawSpan { device, thread, start, duration, id, cause, .. } = *raw;
            all.push(Span { name, device: device >= 0, thread, start, duration, id, cause });
        }
        fn end() -> Result<Vec<Span>, String> {
            let mut all: Vec<Span> = vec![];
            // SAFETY: the list outlives the call.
            outcome(unsafe { ext_profile_stop(seen, (&raw mut all).cast()) })?;
            Ok(all)
        }
        struct EndOnPanic;
        impl Drop for EndOnPanic {
            /// Where `body` panics.
            fn drop(&mut self) {
                let _ = end();
            }
        }
        // SAFETY: no precondition.
        outcome(unsafe { ext_profile_start(c_int::from(device)) })?;
        let guard = EndOnPanic;
        let value = body();
        std::mem::forget(guard);
        Ok((value, Self::from_spans(end()?)))
    }

    /// The first `most` rows of each table alone; the sum stays.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        self.operators.truncate(most);
        self.kernels.truncate(most);
        self
    }

    /// The rows that take most, for people.
    #[must_use]
    pub fn table(&self, of: &str) -> String {
        const ROWS: usize = 12;
        let mut text = match self.clock {
            Clock::Kernels => format!("kernels of {of}: {:.4} s", self.seconds),
            Clock::Host => format!(
                "operators of {of}, by the host's clock (the profiler saw no kernel): {:.4} s",
                self.seconds
            ),
        };
        for (rows, indent) in [(&self.operators, 2), (&self.kernels, 4)] {
            for Row { name, calls, seconds } in rows.iter().take(ROWS) {
                let share = 100.0 * seconds / self.seconds;
                let name: String = name.chars().take(80).collect();
                text += &format!("\n{:indent$}{share:>5.1} % {calls:>6} x {name}", "");
            }
        }
        text
    }

    fn from_spans(spans: Vec<Span>) -> Self {
        let (kernels, host): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| span.device);
        if kernels.is_empty() {
            let operators = rows(own_times(host));
            let seconds = operators.iter().map(|row| row.seconds).sum();
            return Self { clock: Clock::Host, seconds, operators, kernels: vec![] };
        }
        // Calls of CUDA have a cause too, and numbers of their own.
        let operators = host.iter().filter(|span| span.cause == 0);
        let names: HashMap<_, _> = operators.map(|span| (span.id, span.name.as_str())).collect();
        let operator = |span: &Span| {
            let found = if span.cause == 0 { None } else { names.get(&span.cause) };
            ((*found.unwrap_or(&"-")).to_owned(), span.duration)
        };
        let operators = rows(kernels.iter().map(operator));
        let seconds = operators.iter().map(|row| row.seconds).sum();
        let kernels = rows(kernels.into_iter().map(|span| (span.name, span.duration)));
        Self { clock: Clock::Kernels, seconds, operators, kernels }
    }
}

/// Names and nanoseconds of their own: those of a span less those of the spans within it.
fn own_times(mut spans: Vec<Span>) -> impl Iterator<Item = (String, u64)> {
    // The outer before the inner.
    spans.sort_by_key(|span| (span.thread, span.start, u64::MAX - span.duration));
    let mut own: Vec<u64> = spans.iter().map(|span| span.duration).collect();
    let mut open: Vec<usize> = vec![];
    for (i, span) in spans.iter().enumerate() {
        let holds = |outer: usize| {
            let outer: &Span = &spans[outer];
            outer.thread == span.thread && span.start < outer.start + outer.duration
        };
        while open.last().is_some_and(|outer| !holds(*outer)) {
            open.pop();
        }
        if let Some(outer) = open.last() {
            own[*outer] = own[*outer].saturating_sub(span.duration);
        }
        open.push(i);
    }
    spans.into_iter().map(|span| span.name).zip(own)
}

/// Sums by name, the largest first.
fn rows(times: impl IntoIterator<Item = (String, u64)>) -> Vec<Row> {
    let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
    for (name, nanoseconds) in times {
        let (calls, sum) = sums.entry(name).or_default();
        (*calls, *sum) = (*calls + 1, *sum + nanoseconds);
    }
    let row = |(name, (calls, sum))| Row { name, calls, seconds: sum as f64 * 1e-9 };
    let mut rows: Vec<_> = sums.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.name.cmp(&b.name)));
    rows
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    fn span(name: &str, device: bool, (start, duration): (u64, u64), id: u64, cause: u64) -> Span {
        Span { name: name.into(), device, thread: 1, start, duration, id, cause }
    }

    fn named(rows: &[Row]) -> Vec<(&str, u64, i64)> {
        let ns = |row: &Row| (row.seconds * 1e9).round() as i64;
        rows.iter().map(|row| (row.name.as_str(), row.calls, ns(row))).collect()
    }

    #[test]
    fn kernels_count_for_the_operator_that_started_them() {
        let spans = vec![
            span("conv2d", false, (0, 50), 1, 0),
            span("cudaLaunchKernel", false, (10, 5), 8, 1),
            span("relu", false, (60, 10), 2, 0),
            span("gemm", true, (100, 400), 8, 1),
            span("gemm", true, (500, 200), 9, 1),
            span("elementwise", true, (700, 30), 10, 2),
            span("of a graph", true, (800, 7), 11, 0),
        ];
        let profile = Profile::from_spans(spans);
        assert_eq!(profile.clock, Clock::Kernels);
        assert_eq!(named(&profile.operators), [("conv2d", 2, 600), ("relu", 1, 30), ("-", 1, 7)]);
        let kernels = [("gemm", 2, 600), ("elementwise", 1, 30), ("of a graph", 1, 7)];
        assert_eq!(named(&profile.kernels), kernels);
        assert!((profile.seconds - 637e-9).abs() < 1e-15);
    }

    #[test]
    fn an_operator_s_own_time_is_without_what_it_calls() {
        let mut spans = vec![
            span("inner", false, (10, 20), 2, 0),
            span("outer", false, (0, 100), 1, 0),
            span("innermost", false, (15, 5), 3, 0),
            span("inner", false, (40, 10), 4, 0),
            span("next", false, (100, 1), 5, 0),
        ];
        spans.push(Span { thread: 2, ..span("beside", false, (20, 3), 6, 0) });
        let profile = Profile::from_spans(spans);
        assert_eq!(profile.clock, Clock::Host);
        let expected = [
            ("outer", 1, 70),
            ("inner", 2, 25),
            ("innermost", 1, 5),
            ("beside", 1, 3),
            ("next", 1, 1),
        ];
        assert_eq!(named(&profile.operators), expected);
    }

    #[test]
    fn operators_forward_and_backward_are_seen_and_their_times_fill_the_body_s() {
        let x = Tensor::randn([64, 64], tch::kind::FLOAT_CPU).set_requires_grad(true);
        let ((), profile) = Profile::of(false, || {
            let loss = x.matmul(&x).tanh().sum(Kind::Float);
            let _ = Tensor::run_backward(&[loss], &[&x], false, false);
        })
        .unwrap();
        let calls = |name: &str| {
            let row = profile.operators.iter().find(|row| row.name == name);
            row.map_or(0, |row| row.calls)
        };
        assert_eq!(calls("aten::mm"), 3, "{profile:?}");
        assert_eq!((calls("aten::tanh"), calls("aten::tanh_backward")), (1, 1), "{profile:?}");
        assert!(profile.seconds > 0.0 && profile.kernels.is_empty());
        // It can be done again.
        assert!(Profile::of(false, || x.sum(Kind::Float)).unwrap().1.operators.len() < 10);
    }
}
