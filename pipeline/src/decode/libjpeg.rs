//! libjpeg-turbo behind `shim/jpeg.c`: headers in, rows of pixels out, with the coefficients from
//! its own entropy decoder or from [`super::entropy`]; and the coefficients of a whole file, for
//! [`super::judge`].

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

// The library that the shim calls.
use turbojpeg_sys as _;

use super::rows::Pixels;
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

/// What libjpeg-turbo complained of while it read a file to its end, counted by kind.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warnings {
    /// Bytes that belong to no segment, between the headers or behind the picture's data.
    pub junk: u32,
    /// Bytes left over within the data: before a restart marker or between scans.
    pub stray: u32,
    /// Data that end before their MCUs; scans that never came.
    pub cut: u32,
    /// The file ends without an end marker. Alone it is no damage: every MCU was there.
    pub no_end: u32,
    /// A code that the Huffman tables do not have, or a bad arithmetic code.
    pub code: u32,
    /// A restart marker that is missing or out of turn.
    pub restart: u32,
    /// Scans that do not follow from each other.
    pub progression: u32,
    /// An error behind the picture's last MCU.
    pub behind: u32,
    /// A JFIF version or an Adobe transform that does not exist, odd numbers in the header of a
    /// sequential scan.
    pub notes: u32,
    /// What later versions of the library may warn of.
    pub other: u32,
}

impl Warnings {
    /// True where the file holds damage: not of junk, of notes or of the end marker alone.
    pub fn damage(&self) -> bool {
        let Self { stray, cut, code, restart, progression, other, .. } = *self;
        stray + cut + code + restart + progression + other > 0
    }
}

impl std::fmt::Display for Warnings {
    /// The kinds that there are, in words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [
            (self.junk, "bytes that belong to no segment"),
            (self.stray, "data left over"),
            (self.cut, "data that end early"),
            (self.no_end, "no end marker"),
            (self.code, "unknown codes"),
            (self.restart, "restart markers missing or out of turn"),
            (self.progression, "scans that do not follow from each other"),
            (self.behind, "what cannot stand behind a picture"),
            (self.notes, "odd numbers in its headers"),
            (self.other, "something new to us"),
        ];
        let mut between = "";
        for (_, name) in kinds.iter().filter(|(count, _)| *count > 0) {
            write!(f, "{between}{name}")?;
            between = ", ";
        }
        Ok(())
    }
}

/// A component of a picture.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Component {
    /// Its blocks from left to right and from top to bottom, without those that fill up MCUs.
    pub(super) across: u32,
    pub(super) down: u32,
    /// Sampling factors.
    pub(super) horizontal: u32,
    pub(super) vertical: u32,
    /// Natural order.
    pub(super) quantisers: [u16; 64],
}

/// What coefficients are of.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    /// libjpeg's number of the colour space.
    pub(super) space: u32,
    count: u32,
    /// The components of the current scan.
    pub(super) scan: [u32; 4],
    components: [Component; 10],
}

impl Frame {
    const NONE: Self = {
        let component =
            Component { across: 0, down: 0, horizontal: 0, vertical: 0, quantisers: [0; 64] };
        let components = [component; 10];
        Self { width: 0, height: 0, space: 0, count: 0, scan: [0; 4], components }
    };

    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.count as usize]
    }
}

#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

type Source = unsafe extern "C" fn(*mut c_void, *mut Block, usize) -> c_int;
type Sink = unsafe extern "C" fn(*mut c_void, u32, u32, *const Block, usize) -> c_int;

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
        lenient: u64,
        layout: *mut Layout,
    ) -> c_int;
    fn picture_components(picture: *const Opaque, frame: *mut Frame);
    fn picture_warnings(picture: *const Opaque, warnings: *mut Warnings);
    fn picture_coefficients(
        picture: *mut Opaque,
        bytes: *const u8,
        length: usize,
        most_pixels: u64,
        frame: *mut Frame,
        sink: Sink,
        context: *mut c_void,
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

/// Gets the rows of blocks of a file: component, row, blocks.
type Rows<'a> = &'a mut dyn FnMut(usize, usize, &[Block]);

/// The shim's way to a closure that takes rows of blocks. No panic crosses it.
unsafe extern "C" fn take(
    context: *mut c_void,
    component: u32,
    row: u32,
    blocks: *const Block,
    count: usize,
) -> c_int {
    // SAFETY: `coefficients` passes this pair, which nothing else touches until the shim returns,
    // and the shim `count` blocks of the library's memory.
    let ((rows, panic), blocks) = unsafe {
        (
            &mut *context.cast::<(Rows<'_>, Option<std::thread::Result<()>>)>(),
            std::slice::from_raw_parts(blocks, count),
        )
    };
    let done = catch_unwind(AssertUnwindSafe(|| rows(component as usize, row as usize, blocks)));
    match done {
        Ok(()) => 1,
        Err(_) => {
            *panic = Some(done);
            0
        }
    }
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
        self.begin(bytes, size, divisor, 0)
    }

    /// Reads the headers of a picture of up to `most_pixels`; damage is only counted from here on.
    pub(super) fn start_lenient<'a>(
        &'a mut self,
        bytes: &'a [u8],
        most_pixels: u64,
    ) -> Result<Started<'a>, Fault> {
        self.begin(bytes, (0, 0), 1, most_pixels.max(1))
    }

    /// What the library complained of since the last picture was started.
    pub(super) fn warnings(&self) -> Warnings {
        let mut warnings = Warnings::default();
        // SAFETY: the decompressor is alive, the struct is valid.
        unsafe { picture_warnings(self.0.as_ptr(), &mut warnings) };
        warnings
    }

    /// Reads the coefficients of a whole file by libjpeg-turbo alone, however damaged it is.
    pub(super) fn coefficients(
        &mut self,
        bytes: &[u8],
        most_pixels: u64,
        rows: Rows<'_>,
    ) -> Result<Frame, Fault> {
        let mut frame = Frame::NONE;
        let mut context: (Rows<'_>, Option<std::thread::Result<()>>) = (rows, None);
        // SAFETY: the decompressor is alive, slice and frame are valid; `take` gets the context
        // that it expects, alive and not aliased.
        let status = unsafe {
            let (data, length) = (bytes.as_ptr(), bytes.len());
            let (picture, context) = (self.0.as_ptr(), (&raw mut context).cast());
            picture_coefficients(picture, data, length, most_pixels, &mut frame, take, context)
        };
        if let Some(Err(panic)) = context.1 {
            resume_unwind(panic);
        }
        self.check(status)?;
        Ok(frame)
    }

    fn begin<'a>(
        &'a mut self,
        bytes: &'a [u8],
        size: (usize, usize),
        divisor: usize,
        lenient: u64,
    ) -> Result<Started<'a>, Fault> {
        let mut layout = Layout::NONE;
        let (width, height, divisor) = (size.0 as u32, size.1 as u32, divisor as u32);
        // SAFETY: the decompressor is alive, the slice and the layout are valid; the shim keeps
        // the slice's pointer, but reads it only in `picture_read`, while `Started` borrows it.
        let status = unsafe {
            let (picture, data, length) = (self.0.as_ptr(), bytes.as_ptr(), bytes.len());
            picture_start(picture, data, length, width, height, divisor, lenient, &mut layout)
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
    /// What its coefficients are of.
    pub(super) fn frame(&self) -> Frame {
        let mut frame = Frame::NONE;
        // SAFETY: the decompressor was started, the struct is valid.
        unsafe { picture_components(self.picture.0.as_ptr(), &mut frame) };
        frame
    }

    /// Writes the pixels to the front of `out`. The coefficients come from `source`; without one
    /// libjpeg-turbo decodes what follows the headers.
    pub(super) fn read(
        self,
        source: Option<&mut dyn Coefficients>,
        out: &mut Pixels,
    ) -> Result<(), Fault> {
        let Layout { width, height, channels, .. } = self.layout;
        let pitch = width as usize * channels as usize;
        let out = out.rows(pitch, height as usize * pitch);
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
