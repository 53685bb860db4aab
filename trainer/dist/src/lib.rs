//! Many processes as one run: torch.distributed's store and process groups, who is which rank, what
//! all ranks must agree on, and what happens when one of them fails.

mod error;
mod place;
mod rendezvous;
mod watch;
mod world;

pub use error::{Error, Failure, Result};
pub use place::{Place, prefix};
pub use watch::{Limits, Verdict, last_words};
pub use world::{Pending, Traffic, World};
