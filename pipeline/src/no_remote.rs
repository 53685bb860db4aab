//! In place of `remote` and `read_ahead` where the program is built without the feature `remote`:
//! no folder is behind a URL.

use std::convert::Infallible;
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::address::{RemoteOptions, Traffic, without_secrets};
use crate::error::Error;

/// A folder behind a URL, of which there is none.
#[derive(Debug)]
pub(crate) struct Remote(Infallible);

impl Remote {
    pub(crate) fn open(dir: &Path, options: &RemoteOptions) -> Result<Arc<Self>, Error> {
        options.check()?;
        let url = without_secrets(dir);
        let problem = "this program was built without network access".into();
        let mend = "build it with the feature `remote` of the crate pipeline, or copy the folder";
        Err(Error::Remote { action: "read", url, problem, mend, input: true })
    }

    pub(crate) fn url(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) fn traffic(&self) -> Traffic {
        match self.0 {}
    }

    pub(crate) fn file(&self, _name: &str, _optional: bool) -> Result<Option<Vec<u8>>, Error> {
        match self.0 {}
    }

    pub(crate) fn large_file(&self, _name: &str, _length: u64) -> Result<Vec<u8>, Error> {
        match self.0 {}
    }

    pub(crate) fn range(
        &self,
        _name: &str,
        _range: Range<u64>,
        _length: u64,
    ) -> Result<Vec<u8>, Error> {
        match self.0 {}
    }

    pub(crate) fn part_unless(
        &self,
        _name: &str,
        (_part, _range): (Range<u64>, Range<u64>),
        _length: u64,
        _stop: impl Future<Output = ()>,
    ) -> Result<Vec<u8>, Error> {
        match self.0 {}
    }
}

/// As the module `read_ahead`.
pub(crate) mod ahead {
    use std::convert::Infallible;
    use std::sync::Arc;

    use bytes::Bytes;

    use crate::SampleId;
    use crate::cursor::Cursor;
    use crate::dataset::Dataset;
    use crate::error::Error;
    use crate::sampler::Plan;

    #[derive(Debug)]
    pub(crate) struct Piece;

    #[derive(Debug)]
    pub(crate) struct ReadAhead(Infallible);

    impl ReadAhead {
        pub(crate) fn start(_: &Arc<Dataset>, _: &Arc<Plan>, _: Cursor, _: u64) -> Option<Self> {
            None
        }

        pub(crate) fn take<T>(
            &self,
            _pieces: &mut Vec<Piece>,
            _take: impl FnOnce() -> Option<(T, usize)>,
        ) -> Option<T> {
            match self.0 {}
        }

        pub(crate) fn bytes(&self, _: Option<Piece>, _: SampleId) -> Result<Bytes, Error> {
            match self.0 {}
        }

        pub(crate) fn read(&self, _sample: SampleId) -> Result<Bytes, Error> {
            match self.0 {}
        }

        pub(crate) fn stop(&self) {
            match self.0 {}
        }
    }
}

/// As the module `store`.
pub(crate) mod store {
    use std::convert::Infallible;
    use std::fs::File;
    use std::path::Path;

    use crate::address::{Stored, without_secrets};
    use crate::error::Error;

    /// A folder behind a URL to write to, of which there is none in this program.
    #[derive(Debug)]
    pub struct Store(Infallible);

    impl Store {
        /// Refuses.
        ///
        /// # Errors
        /// [`Error::Remote`].
        pub fn open(url: &str) -> Result<Self, Error> {
            let url = without_secrets(Path::new(url));
            let problem = "this program was built without network access".into();
            let mend = "build it with the feature `remote`";
            Err(Error::Remote { action: "write to", url, problem, mend, input: true })
        }

        /// There is none.
        #[must_use]
        pub fn url(&self) -> &Path {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn list(&self) -> Result<Vec<Stored>, Error> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn read(&self, _name: &str) -> Result<Option<Vec<u8>>, Error> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn put(&self, _name: &str, _bytes: &[u8]) -> Result<(), Error> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn write(&self, _name: &str, _file: File) -> Result<(u64, String), Error> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn read_with(
            &self,
            _name: &str,
            _take: impl FnMut(&[u8]) -> Result<(), Error>,
        ) -> Result<Option<(u64, String)>, Error> {
            match self.0 {}
        }

        /// There is none.
        #[must_use]
        pub fn local(&self) -> Option<&Path> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn remove_unfinished(&self) -> Result<(), Error> {
            match self.0 {}
        }

        /// There is none.
        ///
        /// # Errors
        /// None.
        pub fn remove(&self, _name: &str) -> Result<(), Error> {
            match self.0 {}
        }
    }
}
