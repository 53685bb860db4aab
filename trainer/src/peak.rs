//! What GPUs can do at most, for model FLOP utilisation (MFU).

use bigbigan_model::config::Precision;
use tch::Device;

/// A kind of GPU: words that its name holds, then 10¹² floating-point operations a second in single
/// precision (outside of tensor cores), in TF32 and in bfloat16.
type Known = (&'static [&'static str], [f64; 3]);

/// Of those that share words, the narrower first.
///
/// # Source
/// NVIDIA's data sheets and architecture papers of each card, dense: half of what they give with
/// sparsity. GeForce cards sum in single precision.
const KNOWN: [Known; 14] = [
    (&["B200"], [75.0, 1125.0, 2250.0]),
    (&["H200", "NVL"], [60.0, 417.5, 835.5]),
    (&["H200"], [66.9, 494.7, 989.4]),
    (&["GH200"], [66.9, 494.7, 989.4]),
    (&["H100", "PCIe"], [51.2, 378.0, 756.0]),
    (&["H100", "NVL"], [60.0, 417.5, 835.5]),
    (&["H100", "HBM3"], [66.9, 494.7, 989.4]),
    (&["A100"], [19.5, 156.0, 312.0]),
    (&["A40"], [37.4, 74.8, 149.7]),
    (&["A10"], [31.2, 62.5, 125.0]),
    (&["L40S"], [91.6, 183.0, 362.0]),
    (&["L4"], [30.3, 60.0, 121.0]),
    (&["RTX", "4090"], [82.6, 82.6, 165.2]),
    (&["RTX", "3090"], [35.6, 35.6, 71.0]),
];

/// Floating-point operations a second that the GPU of this name, as its driver gives it, does at most
/// in `precision`; `None` where that is not known, as of a part of a GPU.
#[must_use]
pub fn flops(name: &str, precision: Precision) -> Option<f64> {
    let words: Vec<_> = name.split([' ', '-']).collect();
    // More words would be another card: "RTX 3090 Ti", "RTX 4090 Laptop GPU", "H100 … MIG 1g.10gb".
    if ["MIG", "Ti", "D", "Laptop"].iter().any(|word| words.contains(word)) {
        return None;
    }
    let (_, peaks) = KNOWN.iter().find(|(all, _)| all.iter().all(|word| words.contains(word)))?;
    let [f32, tf32, bf16] = peaks.map(|tera| 1e12 * tera);
    Some(match precision {
        Precision::F32 => f32,
        Precision::Tf32 => tf32,
        Precision::Bf16 => bf16,
    })
}

/// As [`flops`], of a device; `None` for the CPU too, and for a device that does not give its name.
#[must_use]
pub fn of(device: Device, precision: Precision) -> Option<f64> {
    let name = torch_ext::cuda::device_name(device);
    let name = name.inspect_err(|e| tracing::warn!("no MFU will be known: {e}"));
    flops(&name.ok()??, precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_drivers_give_them_are_known_and_others_are_not_guessed() {
        for (name, bf16) in [
            ("NVIDIA H100 80GB HBM3", Some(989.4)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA H100 NVL", Some(835.5)),
            ("NVIDIA H200", Some(989.4)),
            ("NVIDIA H200 NVL", Some(835.5)),
            ("NVIDIA A100-SXM4-80GB", Some(312.0)),
            ("NVIDIA A100 80GB PCIe", Some(312.0)),
            ("NVIDIA L4", Some(121.0)),
            ("NVIDIA GeForce RTX 3090", Some(71.0)),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
            ("NVIDIA GeForce RTX 3090 Ti", None),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA A100X", None),
            ("NVIDIA H800", None),
            ("", None),
        ] {
            let found = flops(name, Precision::Bf16);
            assert_eq!(found, bf16.map(|tera| 1e12 * tera), "{name}");
        }
        let h100 = |precision| flops("NVIDIA H100 80GB HBM3", precision);
        assert_eq!(h100(Precision::F32), Some(1e12 * 66.9));
        assert_eq!(h100(Precision::Tf32), Some(1e12 * 494.7));
    }
}
