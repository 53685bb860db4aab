//! The tensors of a state as safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use bigbigan_model::state::{Averaged, TrainState, Trainable};
use common::files;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use tch::{Kind, Tensor, no_grad};

use super::{FileRecord, fault, record, unread};
use crate::error::{Error, Result};

/// Tensors by name.
pub(crate) type Named = Vec<(String, Tensor)>;

/// Every tensor of a state, by file and name. Writing to them writes to the state; [`bigbigan_model::nn::Params::rescale`]
/// then makes W/σ of them.
pub(crate) fn contents(state: &TrainState) -> Vec<(String, Named)> {
    let mut all = trainable("discriminator", &state.d);
    all.extend(averaged("generator", &state.g));
    all.extend(state.e.iter().flat_map(|e| averaged("encoder", e)));
    all.extend(state.further.iter().flat_map(|further| trainable("further", further)));
    all
}

fn trainable<N>(name: &str, network: &Trainable<N>) -> Vec<(String, Named)> {
    let moments = |prefix: &str, flat: &Tensor| {
        let pieces = network.params.unflatten(flat).into_iter();
        pieces.map(|(name, t)| (format!("{prefix}.{name}"), t)).collect::<Named>()
    };
    let mut adam = moments("m", &network.adam.m);
    adam.extend(moments("v", &network.adam.v));
    vec![
        (format!("{name}.safetensors"), network.params.state()),
        (format!("{name}.adam.safetensors"), adam),
    ]
}

fn averaged<N>(name: &str, network: &Averaged<N>) -> Vec<(String, Named)> {
    let mut files = trainable(name, &network.live);
    let average = network.live.params.unflatten(&network.average);
    files.push((format!("{name}.average.safetensors"), average));
    files
}

fn dtype(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Double => Some(Dtype::F64),
        _ => None,
    }
}

/// A tensor in host memory as safetensors writes it.
struct Host<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Host<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

pub(crate) fn write_tensors(path: &Path, tensors: &Named) -> Result<FileRecord> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind())
            .ok_or_else(|| fault(path, format!("{name} is {:?}", tensor.kind())))?;
        let shape = tensor.size().into_iter().map(|side| side as usize).collect();
        views.push((name.as_str(), Host { tensor, dtype, shape }));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io("write", path)(e),
        e => fault(path, e),
    })?;
    files::sync_file(path).map_err(Error::io("sync", path))?;
    record(path).map_err(Error::io("read", path))
}

/// Fills `tensors` from a file that must hold exactly these names, shapes and types.
pub(crate) fn read_tensors(path: &Path, tensors: &mut Named) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| unread(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fault(path, e))?;
    let expected: BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let found: BTreeSet<&str> = file.names().into_iter().collect();
    if let Some(name) = expected.symmetric_difference(&found).next() {
        let side = if expected.contains(name) { "lacks" } else { "has an unexpected" };
        return Err(fault(path, format!("{side} tensor {name}: another model's checkpoint?")));
    }
    for (name, tensor) in tensors {
        let view = file.tensor(name).map_err(|e| fault(path, e))?;
        let shape: Vec<i64> = view.shape().iter().map(|s| *s as i64).collect();
        if shape != tensor.size() || Some(view.dtype()) != dtype(tensor.kind()) {
            let (found, wanted) = (view.dtype(), tensor.kind());
            let wanted = format!("{wanted:?} {:?}", tensor.size());
            return Err(fault(path, format!("{name} is {found:?} {shape:?}, expected {wanted}")));
        }
        let data = Tensor::f_from_data_size(view.data(), &shape, tensor.kind())?;
        no_grad(|| tensor.f_copy_(&data)).map_err(|e| fault(path, e))?;
    }
    Ok(())
}

/// What a safetensors file says of itself beside its tensors.
///
/// # Errors
/// [`Error::Checkpoint`].
pub(crate) fn note_of(path: &Path) -> Result<HashMap<String, String>> {
    let bytes = fs::read(path).map_err(|e| unread(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| fault(path, e))?;
    Ok(header.metadata().clone().unwrap_or_default())
}
