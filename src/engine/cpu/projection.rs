//! Projections with their adapters, forward and backward, and DoRA as PEFT computes it (peft/tuners/lora/dora.py and
//! variants.py): with dropout, the magnitude's share of the base's output comes from the dropped input.

use std::ops::Range;

use candle_core::Tensor;

use super::elementwise::add;
use super::frozen::{Dora, Frozen};
use super::matrix::{Matrix, each_row, times, times_transposed, transposed_times, values};
use crate::engine::dropout::{Dropout, Mask};
use crate::error::{Error, Result};
use crate::train::lora::Slot;

/// `dropout(x)` of a slot, without spare columns.
fn dropped(x: &Matrix, slot: &Slot, dropout: &Dropout) -> Result<Matrix> {
    let (rows, cols, width) = (x.rows(), x.cols(), x.width());
    let (mask, scale) = (dropout.mask(slot.module), dropout.scale());
    let x = x.values();
    let mut out = vec![0.0; rows * cols];
    each_row(&mut out, cols, |row, out| {
        for (col, (out, x)) in out.iter_mut().zip(&x[row * width..]).enumerate() {
            *out = if mask.keeps(row, col, cols) { x * scale } else { 0.0 };
        }
    });
    Matrix::new(out, rows, cols, cols)
}

/// Adds `gradient`, with respect to `dropout(x)`, to that of `x`, of which `cols` columns count.
fn add_dropped(dx: &mut Matrix, gradient: &Tensor, mask: Mask, scale: f32) -> Result<()> {
    let (cols, width) = (dx.cols(), dx.width());
    let gradient = values(gradient);
    dx.change(|dx| {
        each_row(dx, width, |row, dx| {
            for (col, (dx, gradient)) in dx.iter_mut().zip(&gradient[row * cols..][..cols]).enumerate() {
                *dx += if mask.keeps(row, col, cols) { gradient * scale } else { 0.0 };
            }
        });
    })
}

pub(super) fn adapt(frozen: &Frozen, mut x: Matrix, dropout: Option<&Dropout>) -> Result<Matrix> {
    let (inputs, room) = (frozen.group.inputs, frozen.group.room());
    let width = x.width();
    if x.cols() != inputs || width != inputs + room {
        let problem = format!("an input has {} and {} columns, not {inputs} and {}", x.cols(), width, inputs + room);
        return Err(Error::bug(problem, "report this: the model's parts don't fit"));
    }
    if room == 0 {
        return Ok(x);
    }
    let Some(dropout) = dropout else {
        let adapted = times_transposed(&x.columns(0, inputs)?, &frozen.a)?;
        let adapted = values(&adapted);
        x.change(|x| each_row(x, width, |row, x| x[inputs..].copy_from_slice(&adapted[row * room..][..room])))?;
        return Ok(x);
    };
    for slot in &frozen.group.slots {
        let [_, _, a] = frozen.parts(slot)?;
        let adapted = times_transposed(dropped(&x, slot, dropout)?.whole(), &a)?;
        let (adapted, rank) = (values(&adapted), slot.columns.len());
        x.change(|x| {
            each_row(x, width, |row, x| {
                x[inputs..][slot.columns.clone()].copy_from_slice(&adapted[row * rank..][..rank]);
            });
        })?;
    }
    let used = inputs + frozen.group.slots.len() * frozen.group.rank;
    x.change(|x| each_row(x, width, |_, x| x[used..].fill(0.0)))?;
    Ok(x)
}

pub(super) fn project(frozen: &Frozen, x: &Matrix, dropout: Option<&Dropout>, onto: Option<&Matrix>) -> Result<Matrix> {
    let mut y = match (&frozen.dora, dropout) {
        (Some(dora), Some(dropout)) => project_dropped(frozen, dora, x, dropout)?,
        (dora, _) => {
            let mut y = Matrix::of(times_transposed(x.whole(), &frozen.weight)?);
            if let Some(dora) = dora {
                scale_columns(&mut y, &dora.gains)?;
            }
            y
        }
    };
    if frozen.bias.is_none() && onto.is_none() {
        return Ok(y);
    }
    let (width, onto_width) = (y.width(), onto.map_or(0, Matrix::width));
    let onto = onto.map(Matrix::values);
    y.change(|y| {
        each_row(y, width, |row, y| {
            if let Some(bias) = &frozen.bias {
                add(y, bias);
            }
            if let Some(onto) = &onto {
                add(y, &onto[row * onto_width..]);
            }
        });
    })?;
    Ok(y)
}

fn scale_columns(y: &mut Matrix, gains: &[f32]) -> Result<()> {
    let width = y.width();
    y.change(|y| each_row(y, width, |_, y| y.iter_mut().zip(gains).for_each(|(y, gain)| *y *= gain)))
}

/// `x W^T + (g - 1) * (dropout(x) W^T) + g * s (dropout(x) A^T) B^T`, without the bias.
fn project_dropped(frozen: &Frozen, dora: &Dora, x: &Matrix, dropout: &Dropout) -> Result<Matrix> {
    let mut y = Matrix::of(times_transposed(&x.columns(0, frozen.group.inputs)?, &frozen.base()?)?);
    let width = y.width();
    for slot in &frozen.group.slots {
        let [base, delta] = dropped_outputs(frozen, slot, x, &dropped(x, slot, dropout)?)?;
        let (base, delta, len) = (values(&base), values(&delta), slot.rows.len());
        let gains = &dora.gains[slot.rows.clone()];
        y.change(|y| {
            each_row(y, width, |row, y| {
                let found = base[row * len..].iter().zip(&delta[row * len..]);
                for ((y, (base, delta)), gain) in y[slot.rows.clone()].iter_mut().zip(found).zip(gains) {
                    *y += (gain - 1.0) * base + gain * delta;
                }
            });
        })?;
    }
    Ok(y)
}

/// A slot's `dropout(x) W^T` and `s (dropout(x) A^T) B^T`.
fn dropped_outputs(frozen: &Frozen, slot: &Slot, x: &Matrix, dropped: &Matrix) -> Result<[Tensor; 2]> {
    let [base, b, _] = frozen.parts(slot)?;
    let adapted = x.columns(frozen.group.inputs + slot.columns.start, slot.columns.len())?;
    Ok([times_transposed(dropped.whole(), &base)?, times_transposed(&adapted, &b)?])
}

pub(super) fn project_back(
    frozen: &Frozen,
    dy: &Matrix,
    x: &Matrix,
    dropout: Option<&Dropout>,
    gradients: &mut [f32],
) -> Result<Matrix> {
    match (&frozen.dora, dropout) {
        (None, _) => plain_back(frozen, dy, x, dropout, gradients),
        (Some(dora), None) => {
            let y = Matrix::of(times_transposed(x.whole(), &frozen.weight)?);
            for slot in &frozen.group.slots {
                add_magnitudes(slot, dora, &products(dy, &y, slot.rows.clone()), gradients);
            }
            drop(y);
            let mut dy = copy(dy, 0, dy.cols())?;
            scale_columns(&mut dy, &dora.gains)?;
            plain_back(frozen, &dy, x, None, gradients)
        }
        (Some(dora), Some(dropout)) => dropped_back(frozen, dora, dy, x, dropout, gradients),
    }
}

/// Without magnitudes.
fn plain_back(
    frozen: &Frozen,
    dy: &Matrix,
    x: &Matrix,
    dropout: Option<&Dropout>,
    gradients: &mut [f32],
) -> Result<Matrix> {
    let (inputs, room) = (frozen.group.inputs, frozen.group.room());
    let mut dx = Matrix::of(times(&dy.columns(0, dy.cols())?, &frozen.weight)?).with_cols(inputs);
    if room == 0 {
        return Ok(dx);
    }
    let scale = frozen.group.scale;
    for slot in &frozen.group.slots {
        let dy = dy.columns(slot.rows.start, slot.rows.len())?;
        let adapted = x.columns(inputs + slot.columns.start, slot.columns.len())?;
        add_scaled(&mut gradients[slot.b.clone()], &transposed_times(&dy, &adapted)?, scale);
    }
    let Some(dropout) = dropout else {
        let dadapted = dx.columns(inputs, room)?;
        let da = transposed_times(&dadapted, &x.columns(0, inputs)?)?;
        for slot in &frozen.group.slots {
            let rows = slot.columns.start * inputs..slot.columns.end * inputs;
            add(&mut gradients[slot.a.clone()], &values(&da)[rows]);
        }
        let through = times(&dadapted, &frozen.a)?;
        let (through, width) = (values(&through), dx.width());
        drop(dadapted);
        dx.change(|dx| each_row(dx, width, |row, dx| add(dx, &through[row * inputs..][..inputs])))?;
        return Ok(dx);
    };
    for slot in &frozen.group.slots {
        let [_, _, a] = frozen.parts(slot)?;
        let dadapted = dx.columns(inputs + slot.columns.start, slot.columns.len())?;
        let da = transposed_times(&dadapted, dropped(x, slot, dropout)?.whole())?;
        add(&mut gradients[slot.a.clone()], &values(&da));
        let through = times(&dadapted, &a)?;
        drop(dadapted);
        add_dropped(&mut dx, &through, dropout.mask(slot.module), dropout.scale())?;
    }
    Ok(dx)
}

/// With magnitudes and dropout: see [`project_dropped`].
fn dropped_back(
    frozen: &Frozen,
    dora: &Dora,
    dy: &Matrix,
    x: &Matrix,
    dropout: &Dropout,
    gradients: &mut [f32],
) -> Result<Matrix> {
    let inputs = frozen.group.inputs;
    let mut dx = Matrix::of(times(&dy.columns(0, dy.cols())?, &frozen.base()?)?);
    for slot in &frozen.group.slots {
        let input = dropped(x, slot, dropout)?;
        let own = copy(dy, slot.rows.start, slot.rows.len())?;
        let found = dropped_outputs(frozen, slot, x, &input)?.map(Matrix::of);
        for found in &found {
            add_magnitudes(slot, dora, &products(&own, found, 0..slot.rows.len()), gradients);
        }
        drop(found);

        // The gradients of the two outputs: (g - 1) * dy and g * dy.
        let (mut dbase, mut ddelta) = (own, copy(dy, slot.rows.start, slot.rows.len())?);
        let gains = &dora.gains[slot.rows.clone()];
        let less: Vec<f32> = gains.iter().map(|gain| gain - 1.0).collect();
        scale_columns(&mut dbase, &less)?;
        scale_columns(&mut ddelta, gains)?;

        let [base, b, a] = frozen.parts(slot)?;
        let adapted = x.columns(inputs + slot.columns.start, slot.columns.len())?;
        let db = transposed_times(ddelta.whole(), &adapted)?;
        add_scaled(&mut gradients[slot.b.clone()], &db, frozen.group.scale);
        let dadapted = times(ddelta.whole(), &b)?;
        add(&mut gradients[slot.a.clone()], &values(&transposed_times(&dadapted, input.whole())?));
        for through in [times(dbase.whole(), &base)?, times(&dadapted, &a)?] {
            add_dropped(&mut dx, &through, dropout.mask(slot.module), dropout.scale())?;
        }
    }
    Ok(dx)
}

/// Some columns, with no spare ones.
fn copy(x: &Matrix, start: usize, len: usize) -> Result<Matrix> {
    let (rows, width) = (x.rows(), x.width());
    let x = x.values();
    let mut out = vec![0.0; rows * len];
    each_row(&mut out, len, |row, out| out.copy_from_slice(&x[row * width + start..][..len]));
    Matrix::new(out, rows, len, len)
}

/// Sums over rows of `dy * y`, of each of these columns.
fn products(dy: &Matrix, y: &Matrix, columns: Range<usize>) -> Vec<f64> {
    let (dy_width, y_width) = (dy.width(), y.width());
    let mut sums = vec![0.0f64; columns.len()];
    let (dy, y) = (dy.values(), y.values());
    for (dy, y) in dy.chunks_exact(dy_width).zip(y.chunks_exact(y_width)) {
        for ((sum, dy), y) in sums.iter_mut().zip(&dy[columns.clone()]).zip(&y[columns.clone()]) {
            *sum += f64::from(*dy) * f64::from(*y);
        }
    }
    sums
}

/// Adds the gradients of a slot's magnitudes: the sums, over the norms.
fn add_magnitudes(slot: &Slot, dora: &Dora, sums: &[f64], gradients: &mut [f32]) {
    let Some(magnitude) = slot.magnitude.clone() else { return };
    let norms = &dora.norms[slot.rows.clone()];
    for ((gradient, sum), norm) in gradients[magnitude].iter_mut().zip(sums).zip(norms) {
        *gradient += (sum / f64::from(*norm)) as f32;
    }
}

fn add_scaled(out: &mut [f32], x: &Tensor, scale: f32) {
    for (out, x) in out.iter_mut().zip(values(x).iter()) {
        *out += scale * x;
    }
}
