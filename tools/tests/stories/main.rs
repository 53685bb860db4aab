//! Stories of `shard-imagenet`, told through its command line on data that each builds itself.
#![allow(missing_docs, reason = "tests")]

mod archives;
mod cifar;
mod coding;
mod folders;
mod formats;
mod interruption;
mod layouts;
mod pipes;
mod readers;
mod reading;
mod seek;
mod shards;
mod support;
