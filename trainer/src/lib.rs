//! BigBiGAN.
