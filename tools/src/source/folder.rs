//! Folders: one of classes (`imagefolder`), or any folder without labels (`flat`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pipeline::container::passed_over;

use crate::Error;
use crate::catalog::{
    Catalog, Class, Item, MAX_IMAGE_BYTES, Place, Rejected, Split, claims_image, key, stem,
};

/// `PATH/CLASS/*`, or `PATH/SPLIT/CLASS/*` where `PATH` holds folders called train, val or test.
/// A split without class folders is taken to be without labels.
///
/// # Errors
/// There are no class folders, or a split has other classes than the first one.
pub(super) fn classes(input: &Path) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let splits: Vec<(Split, PathBuf)> = subfolders(input)?
        .into_iter()
        .filter_map(|(name, path)| Some((Split::from_name(&name)?, path)))
        .collect();
    if splits.is_empty() {
        let numbers = catalog.set_classes(&subfolders(input)?);
        catalog.add_split(input, Split::Train, &numbers)?;
    }
    let mut first: Option<BTreeMap<String, u32>> = None;
    for (split, path) in splits {
        let folders = subfolders(&path)?;
        let numbers = match &mut first {
            _ if folders.is_empty() => BTreeMap::new(),
            None => first.insert(catalog.set_classes(&folders)).clone(),
            Some(numbers) => {
                same_classes(&path, &folders, numbers)?;
                numbers.clone()
            }
        };
        catalog.add_split(&path, split, &numbers)?;
    }
    if catalog.classes.is_empty() {
        let mend = "give the folder that holds the class folders, or use --layout flat";
        return Err(Error::input(input, "holds no folder of a class", mend));
    }
    Ok(catalog)
}

/// Every image below `input`, without labels. Links to folders are not followed.
///
/// # Errors
/// A folder cannot be listed.
pub(super) fn flat(input: &Path) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let mut left = vec![(String::new(), input.to_path_buf())];
    while let Some((prefix, path)) = left.pop() {
        for (name, folder) in subfolders(&path)? {
            if !folder.is_symlink() {
                left.push((format!("{prefix}{name}_"), folder));
            }
        }
        catalog.add_files(&path, &prefix, Split::Train, None)?;
    }
    Ok(catalog)
}

impl Catalog {
    /// Numbers the classes by sorted name.
    fn set_classes(&mut self, folders: &BTreeMap<String, PathBuf>) -> BTreeMap<String, u32> {
        self.classes = folders.keys().map(Class::named).collect();
        folders.keys().cloned().zip(0..).collect()
    }

    /// Adds a split: by class folder, or the images right in it where there are none.
    fn add_split(
        &mut self,
        path: &Path,
        split: Split,
        numbers: &BTreeMap<String, u32>,
    ) -> Result<(), Error> {
        if numbers.is_empty() {
            return self.add_files(path, "", split, None);
        }
        for (name, label) in numbers {
            let folder = path.join(name);
            // ImageNet's files begin with their class already.
            let files = list(&folder)?;
            let named = files.keys().all(|file| file.starts_with(&format!("{name}_")));
            let prefix = if named { String::new() } else { format!("{name}_") };
            self.add_listed(files, &folder, &prefix, split, Some(*label))?;
        }
        Ok(())
    }

    fn add_files(
        &mut self,
        folder: &Path,
        prefix: &str,
        split: Split,
        label: Option<u32>,
    ) -> Result<(), Error> {
        self.add_listed(list(folder)?, folder, prefix, split, label)
    }

    fn add_listed(
        &mut self,
        files: BTreeMap<String, PathBuf>,
        folder: &Path,
        prefix: &str,
        split: Split,
        label: Option<u32>,
    ) -> Result<(), Error> {
        let number = self.folders.len() as u32;
        self.folders.push(folder.to_path_buf());
        for (name, path) in files {
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(metadata) => metadata,
                Err(error) => {
                    // A link to nothing, or a file that went away.
                    self.reject(&path, error.to_string());
                    continue;
                }
            };
            if !claims_image(&name) {
                let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
                self.skipped.add(passed_over(extension), || path.display().to_string());
            } else if !metadata.is_file() {
                self.reject(&path, "is no regular file");
            } else if metadata.len() > MAX_IMAGE_BYTES {
                self.reject(&path, format!("has {} bytes, too many for an image", metadata.len()));
            } else {
                self.items.push(Item {
                    key: key(&format!("{prefix}{}", stem(&name))),
                    split,
                    label,
                    place: Place::File { folder: number, name: name.into() },
                    length: metadata.len() as u32,
                });
            }
        }
        Ok(())
    }

    fn reject(&mut self, path: &Path, reason: impl Into<String>) {
        let name = path.display().to_string();
        self.rejected.push(Rejected { name, reason: reason.into() });
    }
}

/// What is in a folder, sorted by name. Names that begin with a dot are left out, and a name that is
/// not UTF-8 is an error, as it could not be opened by name again.
fn list(folder: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut names = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::open(folder))? {
        let path = entry.map_err(Error::io(folder, "list it"))?.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.starts_with('.') => {}
            Some(name) => {
                names.insert(name.to_owned(), path);
            }
            None => return Err(Error::input(path, "has a name that is not UTF-8", "rename it")),
        }
    }
    Ok(names)
}

fn subfolders(folder: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    if !folder.is_dir() {
        let problem = if folder.exists() { "is no folder" } else { "does not exist" };
        return Err(Error::input(folder, problem, "check --input and --layout"));
    }
    Ok(list(folder)?.into_iter().filter(|(_, path)| path.is_dir()).collect())
}

/// The class folders of another split must be those of the first, no more and no less.
fn same_classes(
    path: &Path,
    folders: &BTreeMap<String, PathBuf>,
    numbers: &BTreeMap<String, u32>,
) -> Result<(), Error> {
    let extra = folders.keys().find(|name| !numbers.contains_key(*name));
    let missing = numbers.keys().find(|name| !folders.contains_key(*name));
    let problem = match (extra, missing) {
        (Some(name), _) => format!("class {name} is here but not in the first split"),
        (_, Some(name)) => format!("class {name} of the first split has no folder here"),
        _ => return Ok(()),
    };
    Err(Error::input(path, problem, "give all splits the same class folders (they may be empty)"))
}
