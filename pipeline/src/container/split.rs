//! Which split a shard or folder belongs to, by the words of its name.

use serde::{Deserialize, Serialize};

/// The part of a data set that an image belongs to, in the order in which shards are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What networks are trained on.
    Train,
    /// Training images held out for choosing settings.
    Trainval,
    /// The validation set.
    Val,
    /// The test set.
    Test,
}

impl Split {
    /// All splits, in the order in which their shards are written.
    pub const ALL: [Self; 4] = [Self::Train, Self::Trainval, Self::Val, Self::Test];

    /// The name that shards of this split begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Trainval => "trainval",
            Self::Val => "val",
            Self::Test => "test",
        }
    }

    /// The split that is called by exactly this word, in whatever case.
    pub fn from_name(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "trainval" => Some(Self::Trainval),
            "val" | "valid" | "validation" | "dev" | "eval" => Some(Self::Val),
            "test" | "testing" => Some(Self::Test),
            _ => None,
        }
    }

    /// The split that the words of a name tell, none where no word is one. Words are runs of
    /// letters: `imagenet1k-validation-00` is of `val`.
    ///
    /// # Errors
    /// Words of two splits, both in the answer.
    pub fn of_words(name: &str) -> Result<Option<Self>, (Self, Self)> {
        let words = name.split(|c: char| !c.is_alphabetic()).filter_map(Self::from_name);
        let mut found = None;
        for split in words {
            match found.replace(split) {
                Some(other) if other != split => return Err((other, split)),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Names that do not tell their splits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MixedSplits {
    /// One name has words of two splits.
    #[error("{name} could be of the split {:?} or of {:?}", .splits.0.name(), .splits.1.name())]
    Two {
        /// The name.
        name: String,
        /// What its words say.
        splits: (Split, Split),
    },
    /// Some names have a word and some have none.
    #[error("{named} is of the split {:?} by its name, but the name of {unnamed} tells none", .split.name())]
    Unnamed {
        /// A name with a word.
        named: String,
        /// What it says.
        split: Split,
        /// A name without.
        unnamed: String,
    },
}

/// The split of each name, given without its extension: what its words tell, or `train` for all
/// where no name has such a word.
///
/// # Errors
/// A name has words of two splits, or lacks one beside names that have one: both could be meant.
pub fn splits(names: &[&str]) -> Result<Vec<Split>, MixedSplits> {
    let of = |name: &&str| {
        Split::of_words(name).map_err(|splits| MixedSplits::Two { name: name.to_string(), splits })
    };
    let found = names.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    let named = names.iter().zip(&found).find_map(|(name, split)| Some((name, (*split)?)));
    let unnamed = names.iter().zip(&found).find(|(_, split)| split.is_none());
    match (named, unnamed) {
        (Some((named, split)), Some((unnamed, _))) => Err(MixedSplits::Unnamed {
            named: named.to_string(),
            split,
            unnamed: unnamed.to_string(),
        }),
        _ => Ok(found.into_iter().map(|split| split.unwrap_or(Split::Train)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_name_tell_its_split() {
        for (name, split) in [
            ("train-000000", Some(Split::Train)),
            ("imagenet1k-train-0000", Some(Split::Train)),
            ("TRAINING_3", Some(Split::Train)),
            ("train2017", Some(Split::Train)),
            ("trainval-000000", Some(Split::Trainval)),
            ("imagenet1k-validation-00", Some(Split::Val)),
            ("ILSVRC2012_img_val", Some(Split::Val)),
            ("valid.7", Some(Split::Val)),
            ("my dev set", Some(Split::Val)),
            ("Eval-3-of-9", Some(Split::Val)),
            ("x_test", Some(Split::Test)),
            ("testing", Some(Split::Test)),
            ("val-of-the-valid", Some(Split::Val)),
            ("shard7", None),
            ("contest-trains-values", None),
            ("détrain", None),
            ("", None),
        ] {
            assert_eq!(Split::of_words(name), Ok(split), "{name}");
        }
        assert_eq!(Split::of_words("train-val-0"), Err((Split::Train, Split::Val)));
        assert_eq!(Split::of_words("test.trainval"), Err((Split::Test, Split::Trainval)));
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_are_refused() {
        let both = splits(&["a-train-0", "a-val-0"]);
        assert_eq!(both, Ok(vec![Split::Train, Split::Val]));
        assert_eq!(splits(&["0", "1"]), Ok(vec![Split::Train; 2]));
        assert_eq!(splits(&[]), Ok(vec![]));
        let error = splits(&["0", "val-1"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "val-1 is of the split \"val\" by its name, but the name of 0 tells none"
        );
        let error = splits(&["train-test"]).unwrap_err().to_string();
        assert_eq!(error, "train-test could be of the split \"train\" or of \"test\"");
    }
}
