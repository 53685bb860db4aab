//! The lossless rewrite of a JPEG: the same coefficients under other entropy coding.
//!
//! This is the only module of the crate with `unsafe`: `tj3Transform` with a restart interval is not
//! in the safe wrapper.

use std::ffi::CStr;
use std::ptr::{self, NonNull};

use turbojpeg::raw;

use crate::Error;

/// What libjpeg-turbo said about a file that it read to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Clean,
    /// A warning; the coefficients may or may not be whole.
    Warned(String),
}

/// A reusable libjpeg-turbo transformer.
#[derive(Debug)]
pub(crate) struct Rewriter {
    handle: NonNull<std::ffi::c_void>,
}

// SAFETY: a TurboJPEG handle has no tie to the thread that made it; `&mut self` keeps two threads from
// using it at once.
unsafe impl Send for Rewriter {}

impl Rewriter {
    /// A transformer that refuses images of more than `max_pixels` and more than 500 scans.
    ///
    /// # Errors
    /// libjpeg-turbo has no memory left.
    pub(crate) fn new(max_pixels: u32) -> Result<Self, Error> {
        // SAFETY: no argument is a pointer; null is checked.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_TRANSFORM as i32) };
        let handle = NonNull::new(handle).ok_or(turbojpeg::Error::Null)?;
        let mut rewriter = Self { handle };
        rewriter.set(raw::TJPARAM_TJPARAM_MAXPIXELS, max_pixels.min(i32::MAX as u32) as i32)?;
        rewriter.set(raw::TJPARAM_TJPARAM_SCANLIMIT, 500)?;
        Ok(rewriter)
    }

    /// Puts into `output` the coefficients and all markers of `jpeg` as baseline, with optimised Huffman
    /// tables and a restart marker every `interval` MCUs (0: none).
    ///
    /// # Errors
    /// The inner `Err` is libjpeg-turbo's text about a file that it cannot read.
    pub(crate) fn rewrite(
        &mut self,
        jpeg: &[u8],
        interval: u16,
        output: &mut Vec<u8>,
    ) -> Result<Result<Verdict, String>, Error> {
        output.clear();
        self.set(raw::TJPARAM_TJPARAM_RESTARTBLOCKS, interval.into())?;
        let transform = raw::tjtransform {
            r: raw::tjregion { x: 0, y: 0, w: 0, h: 0 },
            op: raw::TJXOP_TJXOP_NONE as i32,
            options: raw::TJXOPT_OPTIMIZE as i32,
            data: ptr::null_mut(),
            customFilter: None,
        };
        let (mut buffer, mut length) = (ptr::null_mut::<u8>(), 0);
        // SAFETY: `jpeg` is readable for its length; one transform, one buffer and one length are
        // given, as `n` = 1 says; a null buffer with NOREALLOC unset is the library's to allocate.
        let status = unsafe {
            raw::tj3Transform(
                self.handle.as_ptr(),
                jpeg.as_ptr(),
                jpeg.len() as raw::size_t,
                1,
                &mut buffer,
                &mut length,
                &transform,
            )
        };
        // SAFETY: the handle is alive.
        let fatal =
            unsafe { raw::tj3GetErrorCode(self.handle.as_ptr()) } == raw::TJERR_TJERR_FATAL as i32;
        if !buffer.is_null() {
            if status == 0 || !fatal {
                // SAFETY: the library allocated `buffer` and wrote `length` bytes to it; after a fatal
                // error it may have written fewer.
                let written = unsafe { std::slice::from_raw_parts(buffer, length as usize) };
                output.extend_from_slice(written);
            }
            // SAFETY: the library allocated `buffer`; it is not used afterwards.
            unsafe { raw::tj3Free(buffer.cast()) };
        }
        Ok(match status {
            0 => Ok(Verdict::Clean),
            // After a warning the library goes on to the end of the file.
            _ if !fatal && output.ends_with(&[0xFF, 0xD9]) => Ok(Verdict::Warned(self.text())),
            _ => Err(self.text()),
        })
    }

    fn set(&mut self, parameter: raw::TJPARAM, value: i32) -> Result<(), Error> {
        // SAFETY: the handle is alive and the parameter is one of the library's own.
        match unsafe { raw::tj3Set(self.handle.as_ptr(), parameter as i32, value) } {
            0 => Ok(()),
            _ => Err(turbojpeg::Error::TurboJpegError(self.text()).into()),
        }
    }

    /// The text of the last error or warning.
    fn text(&mut self) -> String {
        // SAFETY: the library returns a NUL-terminated text that lives as long as the handle and is not
        // written to until the next call.
        let text = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.handle.as_ptr())) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        // SAFETY: the handle came from `tj3Init` and is destroyed once.
        unsafe { raw::tj3Destroy(self.handle.as_ptr()) }
    }
}
