//! The three networks of the paper. Shape letters: N batch, Z latent width, R_G side of generated
//! images (and of what D sees), R_E side of what E sees.

mod discriminator;
mod encoder;
mod generator;
mod resnet;
mod revnet;
mod small;

pub use discriminator::{Discriminator, DiscriminatorConfig, ImageConfig, Pair, Scores, Terms};
pub use encoder::{Code, Encoded, Encoder, EncoderConfig, Family};
pub use generator::{Generator, GeneratorConfig, LatentConfig};
