//! libjpeg-turbo behind `shim/jpeg.c`: headers in, rows of pixels out, with the coefficients from
//! its own entropy decoder or from [`super::entropy`].

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

// The library that the shim calls.
use turbojpeg_sys as _;

use super::grow;
use crate::error::Fault;

/// Coefficients of 8 x 8 samples, natural order.
pub(super) type Block = [i16; 64];

/// A source of coefficients, MCU after MCU.
pub(super) trait Coefficients {
    /// Writes the next MCU into blocks of zeros.
    fn next(&mut self, blocks: &mut [Block]) -> Result<(), Fault>;
}

/// A Huffman table as files hold it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// Number of codes of 1 to 16 bits.
    pub(super) lengths: [u8; 16],
    /// What they stand for, in the order of the codes.
    pub(super) symbols: [u8; 256],
}

/// One block of an MCU.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockLayout {
    /// Its component's place in the scan, below 4.
    pub(super) component: u8,
    /// Its DC table, below 4.
    pub(super) dc: u8,
    /// Its AC table, below 4.
    pub(super) ac: u8,
    /// Zero where the picture is so reduced that only DC shows.
    pub(super) detail: u8,
}

/// What the headers of a picture led to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Size in pixels of what [`Started::read`] writes.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bytes of a pixel, 3 for RGB or 4 for CMYK.
    pub(super) channels: u32,
    count: u32,
    blocks: [BlockLayout; 10],
    pub(super) dc: [Table; 4],
    pub(super) ac: [Table; 4],
}

impl Layout {
    const NONE: Self = {
        let table = Table { lengths: [0; 16], symbols: [0; 256] };
        let block = BlockLayout { component: 0, dc: 0, ac: 0, detail: 0 };
        let (blocks, dc, ac) = ([block; 10], [table; 4], [table; 4]);
        Self { width: 0, height: 0, channels: 0, count: 0, blocks, dc, ac }
    };

    /// The blocks of an MCU.
    pub(super) fn blocks(&self) -> &[BlockLayout] {
        &self.blocks[..self.count as usize]
    }
}

#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

type Source = unsafe extern "C" fn(*mut c_void, *mut Block, usize) -> c_int;

unsafe extern "C" {
    fn picture_new() -> *mut Opaque;
    fn picture_free(picture: *mut Opaque);
    fn picture_message(picture: *const Opaque) -> *const c_char;
    fn picture_start(
        picture: *mut Opaque,
        bytes: *const u8,
        length: usize,
        width: u32,
        height: u32,
        divisor: u32,
        layout: *mut Layout,
    ) -> c_int;
    fn picture_read(
        picture: *mut Opaque,
        out: *mut u8,
        source: Option<Source>,
        context: *mut c_void,
    ) -> c_int;
}

/// A libjpeg-turbo decompressor.
#[derive(Debug)]
pub(super) struct Picture(NonNull<Opaque>);

// SAFETY: a decompressor may be used by any one thread at a time; `&mut self` keeps it to one.
unsafe impl Send for Picture {}

impl Drop for Picture {
    fn drop(&mut self) {
        // SAFETY: it came from `picture_new` and is freed only here.
        unsafe { picture_free(self.0.as_ptr()) }
    }
}

/// What the shim holds while it runs: the source, and why it stopped.
struct Feed<'a> {
    source: &'a mut dyn Coefficients,
    end: Option<std::thread::Result<Fault>>,
}

/// The shim's way to the source. Neither a fault nor a panic crosses it.
unsafe extern "C" fn feed(context: *mut c_void, blocks: *mut Block, count: usize) -> c_int {
    // SAFETY: `read` passes a `Feed` that nothing else touches until the shim returns, and the
    // shim `count` blocks of its own memory.
    let (feed, blocks) = unsafe {
        (&mut *context.cast::<Feed<'_>>(), std::slice::from_raw_parts_mut(blocks, count))
    };
    match catch_unwind(AssertUnwindSafe(|| feed.source.next(blocks))) {
        Ok(Ok(())) => return 1,
        Ok(Err(fault)) => feed.end = Some(Ok(fault)),
        Err(panic) => feed.end = Some(Err(panic)),
    }
    0
}

impl Picture {
    pub(super) fn new() -> Result<Self, Fault> {
        // SAFETY: no precondition.
        let picture = NonNull::new(unsafe { picture_new() });
        Ok(Self(picture.ok_or_else(|| Fault::Jpeg("no memory for a decoder".into()))?))
    }

    /// Reads the headers of a picture, which must say `size`, to decode it at 1/`divisor`.
    pub(super) fn start<'a>(
        &'a mut self,
        bytes: &'a [u8],
        size: (usize, usize),
        divisor: usize,
    ) -> Result<Started<'a>, Fault> {
        let mut layout = Layout::NONE;
        let (width, height, divisor) = (size.0 as u32, size.1 as u32, divisor as u32);
        // SAFETY: the decompressor is alive, the slice and the layout are valid; the shim keeps
        // the slice's pointer, but reads it only in `picture_read`, while `Started` borrows it.
        let status = unsafe {
            let (data, length) = (bytes.as_ptr(), bytes.len());
            picture_start(self.0.as_ptr(), data, length, width, height, divisor, &mut layout)
        };
        self.check(status)?;
        Ok(Started { picture: self, bytes: PhantomData, layout })
    }

    fn check(&self, status: c_int) -> Result<(), Fault> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the decompressor is alive; the text is NUL-terminated, belongs to it, and is
        // copied before anything else can change it.
        let text = unsafe { CStr::from_ptr(picture_message(self.0.as_ptr())) };
        let text = text.to_string_lossy().into_owned();
        Err(if status == 1 { Fault::Truncated(text) } else { Fault::Jpeg(text) })
    }
}

/// A picture whose headers are read.
#[derive(Debug)]
pub(super) struct Started<'a> {
    picture: &'a mut Picture,
    bytes: PhantomData<&'a [u8]>,
    pub(super) layout: Layout,
}

impl Started<'_> {
    /// Writes the pixels to the front of `out`. The coefficients come from `source`; without one
    /// libjpeg-turbo decodes what follows the headers.
    pub(super) fn read(
        self,
        source: Option<&mut dyn Coefficients>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let Layout { width, height, channels, .. } = self.layout;
        grow(out, width as usize * height as usize * channels as usize);
        let (picture, out) = (self.picture.0.as_ptr(), out.as_mut_ptr());
        let Some(source) = source else {
            // SAFETY: the decompressor was started, its bytes are still borrowed, and `out` has
            // room for all rows of the layout.
            let status = unsafe { picture_read(picture, out, None, std::ptr::null_mut()) };
            return self.picture.check(status);
        };
        let mut context = Feed { source, end: None };
        // SAFETY: as above; and `feed` gets the context that it expects, alive and not aliased.
        let status = unsafe { picture_read(picture, out, Some(feed), (&raw mut context).cast()) };
        match context.end {
            Some(Ok(fault)) => Err(fault),
            Some(Err(panic)) => resume_unwind(panic),
            None => self.picture.check(status),
        }
    }
}
