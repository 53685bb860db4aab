//! Folders: one of classes (`imagefolder`), or any folder without labels (`flat`).
//!
//! What is read, and what torchvision's `ImageFolder` makes of the same folder, is in
//! docs/formats.md. Where a folder can be read in two ways, both are named and none is chosen.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use pipeline::container::Split;

use super::tree::{Image, Tree};
use crate::Error;
use crate::catalog::{Catalog, Class, Item, Place, Rejected, key, shown, stem};

/// What the folders in the input stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Folders {
    /// Classes, whatever they are called
    Classes,
    /// Splits (train, val, test) that hold the classes
    Splits,
}

/// How a folder of classes is read where its names do not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct FolderOptions {
    /// What the folders in it are; by default as their names and contents tell.
    pub folders: Option<Folders>,
    /// A class folder without an image is a class all the same, as with torchvision's option of this
    /// name.
    pub allow_empty: bool,
}

/// `PATH/CLASS/**`, or `PATH/SPLIT/CLASS/**` where `PATH` holds folders called train, val or test. An
/// image's class is the first folder, however deep it lies. A split without class folders has the
/// labels of its `*_annotations.txt`, else none.
///
/// # Errors
/// There are no class folders, a split has other classes than another, or a name has two readings.
pub(super) fn classes(input: &Path, options: &FolderOptions) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let root = Tree::read(input, true, &mut catalog.skipped)?;
    match reading(&root, options)? {
        Folders::Classes => {
            let numbers = catalog.number_classes(&root, options, "classes")?;
            catalog.add_classes(root, Split::Train, &numbers);
        }
        Folders::Splits => catalog.add_splits(root, options)?,
    }
    Ok(catalog)
}

/// Every image below `input`, without labels. Links to folders are not followed.
///
/// # Errors
/// A folder cannot be listed.
pub(super) fn flat(input: &Path) -> Result<Catalog, Error> {
    let mut catalog = Catalog::default();
    let root = Tree::read(input, false, &mut catalog.skipped)?;
    catalog.add_tree(root, Split::Train, None, &Names::Path(String::new()));
    Ok(catalog)
}

/// Names that hold the images of a whole set rather than those of a class.
const HOLDERS: [&str; 10] =
    ["images", "image", "imgs", "img", "jpegimages", "jpegs", "photos", "pictures", "data", "all"];

fn is_holder(tree: &Tree) -> bool {
    HOLDERS.iter().any(|word| tree.name().eq_ignore_ascii_case(word))
}

/// What the folders in `root` stand for, as they are called and filled.
fn reading(root: &Tree, options: &FolderOptions) -> Result<Folders, Error> {
    if let Some(folders) = options.folders {
        return Ok(folders);
    }
    let is_split = |tree: &&Tree| Split::from_name(&tree.name()).is_some();
    let named: Vec<&Tree> = root.folders.iter().filter(is_split).collect();
    let others: Vec<&Tree> = root.filled().filter(|tree| !is_split(tree)).collect();
    let deep = |tree: &Tree| tree.images.is_empty() && tree.filled().next().is_some();
    let mend = "give --folders splits or --folders classes";
    match (named.first(), others.first()) {
        (Some(_), None) => Ok(Folders::Splits),
        // Beside classes, and filled as they are.
        (Some(_), Some(_)) if named.iter().all(|tree| tree.filled().next().is_none()) => {
            Ok(Folders::Classes)
        }
        (Some(split), Some(other)) => {
            let (split, other) = (split.name(), other.name());
            let problem = format!(
                "{split} could be a split, and {other} be passed over, or both could be classes"
            );
            Err(Error::input(&root.path, problem, mend))
        }
        (None, Some(_)) if others.iter().all(|tree| deep(tree) && of_words(tree).is_some()) => {
            let problem = format!("{} could be a split by its name, or a class", others[0].name());
            Err(Error::input(&root.path, problem, mend))
        }
        (None, _) => Ok(Folders::Classes),
    }
}

/// The split of a folder such as `train2017`.
fn of_words(tree: &Tree) -> Option<Split> {
    Split::of_words(&tree.name()).ok().flatten()
}

/// A single folder may be the only class, or hold what is looked for.
fn check_height(tree: &Tree, options: &FolderOptions, option: &str) -> Result<(), Error> {
    let mut filled = tree.filled();
    let (Some(only), None) = (filled.next(), filled.next()) else { return Ok(()) };
    let (name, path) = (only.name(), shown(only.path.as_os_str()));
    let inside = only.filled().count();
    if options.folders.is_some() || !only.images.is_empty() && !is_holder(only) {
        return Ok(());
    }
    if only.images.is_empty() {
        let problem = format!(
            "holds a single folder, {name}: it could be the only class, or the {inside} folder(s) in \
             it the classes"
        );
        let mend = format!("give --folders {option} for one class, --input {path} for {inside}");
        return Err(Error::input(&tree.path, problem, mend));
    }
    let problem = format!(
        "holds a single folder, {name}: it could be a class of that name, or hold images without \
         classes"
    );
    let mend = format!("give --folders {option} for one class, --layout flat for none");
    Err(Error::input(&tree.path, problem, mend))
}

/// How the keys of images are made of their names.
enum Names {
    /// Of the file's name alone.
    File,
    /// Of the folders on the way to it too, with this before them.
    Path(String),
}

impl Catalog {
    /// The classes are the folders of `tree`, numbered as torchvision does.
    fn number_classes(
        &mut self,
        tree: &Tree,
        options: &FolderOptions,
        option: &str,
    ) -> Result<BTreeMap<String, u32>, Error> {
        if tree.folders.is_empty() {
            let mend = "give the folder that holds the class folders, or use --layout flat";
            return Err(Error::input(&tree.path, "holds no folder of a class", mend));
        }
        check_height(tree, options, option)?;
        let empty: Vec<&Tree> = tree.folders.iter().filter(|folder| folder.count == 0).collect();
        if let (Some(first), false) = (empty.first(), options.allow_empty) {
            let problem = format!(
                "{} folder(s) hold no image that is read here, such as {}: no class, or one whose images \
                 are missing",
                empty.len(),
                first.name()
            );
            let mend = "remove what is no class, or give --allow-empty to number it as one";
            return Err(Error::input(&tree.path, problem, mend));
        }
        for folder in empty {
            self.skipped.add("classes without an image", || shown(folder.path.as_os_str()));
        }
        let mut names: BTreeMap<String, &Tree> = BTreeMap::new();
        for folder in &tree.folders {
            if let Some(other) = names.insert(folder.name(), folder) {
                // One of them has the bytes, the other has what stands for them.
                let [one, two] = [other, folder].map(|tree| tree.path.file_name());
                let (one, two) = (one.unwrap_or_default(), two.unwrap_or_default());
                let problem = format!("the folders {one:?} and {two:?} would be one class");
                return Err(Error::input(&tree.path, problem, "rename one of them"));
            }
        }
        self.classes = tree.folders.iter().map(|folder| Class::named(folder.name())).collect();
        Ok(tree.folders.iter().map(Tree::name).zip(0..).collect())
    }

    /// `PATH/SPLIT/CLASS/**`.
    fn add_splits(&mut self, root: Tree, options: &FolderOptions) -> Result<(), Error> {
        let path = root.path.clone();
        let mut splits: BTreeMap<Split, Tree> = BTreeMap::new();
        self.pass_over(&root);
        for tree in root.folders {
            let named = Split::from_name(&tree.name());
            let words = || options.folders.and_then(|_| of_words(&tree));
            let Some(split) = named.or_else(words) else {
                match tree.count {
                    0 => {
                        self.skipped.add("folders without images", || shown(tree.path.as_os_str()))
                    }
                    count => {
                        self.skipped.add_many("images beside the splits", count, || tree.example())
                    }
                }
                continue;
            };
            if let Some(other) = splits.get(&split) {
                let (one, two) = (other.name(), tree.name());
                let problem = format!("{one} and {two} could both be the split {}", split.name());
                let mend = "move one of them away, or give --folders classes if they are classes";
                return Err(Error::input(path, problem, mend));
            }
            splits.insert(split, tree);
        }
        let Some(first) = splits.values().find(|tree| is_labelled(tree)) else {
            let mend = "give the folder that holds the class folders, --layout flat for images without \
                        labels, or --folders classes if its folders are the classes";
            return Err(Error::input(path, "holds no folder of a class in its splits", mend));
        };
        let numbers = self.number_classes(first, options, "splits")?;
        let first = first.path.clone();
        for (split, tree) in splits {
            if tree.path == first || tree.folders.iter().any(|f| numbers.contains_key(&f.name())) {
                self.check_classes(&tree, &numbers)?;
                self.add_classes(tree, split, &numbers);
            } else if !tree.lists.is_empty() {
                self.add_annotated(tree, split, &numbers)?;
            } else if is_labelled(&tree) {
                self.check_classes(&tree, &numbers)?;
            } else {
                let one = tree.filled().count() <= 1;
                let names = if one { Names::File } else { Names::Path(String::new()) };
                self.add_tree(tree, split, None, &names);
            }
        }
        Ok(())
    }

    /// The class folders of another split must be those of the first, no more and no less.
    fn check_classes(&mut self, tree: &Tree, numbers: &BTreeMap<String, u32>) -> Result<(), Error> {
        let known = |folder: &&Tree| numbers.contains_key(&folder.name());
        let extra = tree.filled().find(|folder| !known(folder));
        let missing = numbers.keys().find(|name| !tree.folders.iter().any(|f| f.name() == **name));
        let problem = match (extra, missing) {
            (Some(folder), _) => {
                format!("class {} is here but not in the first split", folder.name())
            }
            (_, Some(name)) => format!("class {name} of the first split has no folder here"),
            _ => {
                for folder in tree.folders.iter().filter(|folder| !known(folder)) {
                    self.skipped.add("folders without images", || shown(folder.path.as_os_str()));
                }
                return Ok(());
            }
        };
        let mend = "give all splits the same class folders (they may be empty)";
        Err(Error::input(&tree.path, problem, mend))
    }

    /// Adds the images of the folders that are classes.
    fn add_classes(&mut self, tree: Tree, split: Split, numbers: &BTreeMap<String, u32>) {
        self.pass_over(&tree);
        for folder in tree.folders {
            let name = folder.name();
            let Some(label) = numbers.get(&name) else { continue };
            // ImageNet's files begin with their class already.
            let prefix = format!("{name}_");
            let names = match all_begin(&folder, &prefix) {
                true => Names::File,
                false => Names::Path(prefix),
            };
            self.add_tree(folder, split, Some(*label), &names);
        }
    }

    /// Counts what lies beside the folders of classes or splits.
    fn pass_over(&mut self, tree: &Tree) {
        let example = || shown(tree.path.join(&tree.images[0].name).as_os_str());
        match tree.images.len() as u64 {
            0 => {}
            count => self.skipped.add_many("images beside the class folders", count, example),
        }
        for list in &tree.lists {
            self.skipped.add("files .txt", || shown(list.as_os_str()));
        }
    }

    /// Adds a split whose labels are in a list: a line an image, its file name and its class, then
    /// anything. As Tiny ImageNet's `val/images` and `val/val_annotations.txt`.
    fn add_annotated(
        &mut self,
        mut tree: Tree,
        split: Split,
        numbers: &BTreeMap<String, u32>,
    ) -> Result<(), Error> {
        let lists = std::mem::take(&mut tree.lists);
        let [list] = &lists[..] else {
            let mend = "leave one of them there";
            return Err(Error::input(tree.path, "holds several *_annotations.txt", mend));
        };
        let text = std::fs::read(list).map_err(Error::open(list))?;
        let text = String::from_utf8_lossy(&text);
        let mut labels: HashMap<&str, (u32, bool)> = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |problem: String| {
                let problem = format!("line {}: {problem}", number + 1);
                Error::input(list, problem, "mend the list, or put the images into class folders")
            };
            let separator = if line.contains('\t') { '\t' } else { ' ' };
            let mut words = line.split(separator).map(str::trim).filter(|word| !word.is_empty());
            let (Some(file), Some(class)) = (words.next(), words.next()) else {
                return Err(wrong("is no file name and class".to_owned()));
            };
            let Some(label) = numbers.get(class) else {
                return Err(wrong(format!("{class} is no class of the first split")));
            };
            if labels.insert(file, (*label, false)).is_some_and(|(other, _)| other != *label) {
                return Err(wrong(format!("{file} has two classes")));
            }
        }
        self.add_listed(tree, split, &mut labels, list);
        let mut unused: Vec<&str> =
            labels.iter().filter(|(_, (_, used))| !used).map(|(file, _)| *file).collect();
        unused.sort_unstable();
        if let Some(first) = unused.first() {
            let kind = "lines of a list of labels, without an image";
            let example = || format!("{}: {first}", shown(list.as_os_str()));
            self.skipped.add_many(kind, unused.len() as u64, example);
        }
        Ok(())
    }

    /// Adds the images of a split by their lines in a list; those without one are rejected.
    fn add_listed(
        &mut self,
        tree: Tree,
        split: Split,
        labels: &mut HashMap<&str, (u32, bool)>,
        list: &Path,
    ) {
        let folder = self.folders.len() as u32;
        for image in tree.images {
            match image.name.to_str().and_then(|name| labels.get_mut(name)) {
                Some((label, used)) => {
                    *used = true;
                    let label = Some(*label);
                    self.add_image(&tree.path, folder, image, "", split, label);
                }
                None => {
                    let list = shown(list.file_name().unwrap_or_default());
                    self.reject(&tree.path, &image, format!("has no line in {list}"));
                }
            }
        }
        self.folders.push(tree.path);
        for folder in tree.folders {
            self.add_listed(folder, split, labels, list);
        }
    }

    /// Adds a folder and all below it.
    fn add_tree(&mut self, tree: Tree, split: Split, label: Option<u32>, names: &Names) {
        let folder = self.folders.len() as u32;
        let prefix = match names {
            Names::File => "",
            Names::Path(prefix) => prefix,
        };
        for image in tree.images {
            self.add_image(&tree.path, folder, image, prefix, split, label);
        }
        for list in &tree.lists {
            self.skipped.add("files .txt", || shown(list.as_os_str()));
        }
        self.folders.push(tree.path);
        for below in tree.folders {
            let names = match names {
                Names::File => Names::File,
                Names::Path(prefix) => Names::Path(format!("{prefix}{}_", below.name())),
            };
            self.add_tree(below, split, label, &names);
        }
    }

    fn add_image(
        &mut self,
        path: &Path,
        folder: u32,
        image: Image,
        prefix: &str,
        split: Split,
        label: Option<u32>,
    ) {
        match image.length {
            Ok(length) => self.items.push(Item {
                key: key(&format!("{prefix}{}", stem(&shown(&image.name)))),
                split,
                label,
                place: Place::File { folder, name: image.name.into() },
                length,
            }),
            Err(ref reason) => {
                let reason = reason.clone();
                self.reject(path, &image, reason);
            }
        }
    }

    fn reject(&mut self, folder: &Path, image: &Image, reason: String) {
        let name = shown(folder.join(&image.name).as_os_str());
        self.rejected.push(Rejected { name, reason });
    }
}

/// True when a split has folders of classes: not one folder of images, nor a list of labels.
fn is_labelled(tree: &Tree) -> bool {
    let mut filled = tree.filled();
    match (filled.next(), filled.next()) {
        (None, _) => false,
        (Some(only), None) => !is_holder(only),
        _ => tree.lists.is_empty() || tree.images.is_empty(),
    }
}

fn all_begin(tree: &Tree, prefix: &str) -> bool {
    let begins = |image: &Image| shown(&image.name).starts_with(prefix);
    tree.images.iter().all(begins) && tree.folders.iter().all(|below| all_begin(below, prefix))
}
