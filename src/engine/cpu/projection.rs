//! Projections with their adapters, forward and backward, and DoRA as PEFT computes it (peft/tuners/lora/dora.py and
//! variants.py): with dropout, the magnitude's share of the base's output comes from the dropped input.

use std::ops::Range;

use super::elementwise::add;
use super::frozen::{Dora, Frozen};
use super::matrix::{Matrix, View, each_row, misfit, times, times_transposed, transposed_times};
use crate::engine::Slot;
use crate::engine::dropout::{Dropout, Mask};
use crate::error::Result;

/// `dropout(x)` of a slot, without padding columns.
fn dropped(x: &Matrix, slot: &Slot, dropout: &Dropout) -> Matrix {
    let (cols, width) = (x.cols(), x.width());
    let (mask, scale) = (dropout.mask(slot.module), dropout.scale());
    let mut out = Matrix::zeros(x.rows(), cols, cols);
    each_row(out.values_mut(), cols, |row, out| {
        for (col, (out, x)) in out.iter_mut().zip(&x.values()[row * width..]).enumerate() {
            *out = if mask.keeps(row, col, cols) { x * scale } else { 0.0 };
        }
    });
    out
}

/// Adds `gradient`, with respect to `dropout(x)`, to that of `x`.
fn add_dropped(dx: &mut Matrix, gradient: &Matrix, mask: Mask, scale: f32) {
    let (cols, width) = (dx.cols(), dx.width());
    each_row(dx.values_mut(), width, |row, dx| {
        for (col, (dx, gradient)) in dx.iter_mut().zip(&gradient.values()[row * cols..][..cols]).enumerate() {
            *dx += if mask.keeps(row, col, cols) { gradient * scale } else { 0.0 };
        }
    });
}

pub(super) fn adapt(frozen: &Frozen, mut x: Matrix, dropout: Option<&Dropout>) -> Result<Matrix> {
    let (inputs, padding) = (frozen.inputs, frozen.adapters.padding());
    let width = x.width();
    if x.cols() != inputs || width != inputs + padding {
        let problem = format!("an input of {} and {width} columns, not {inputs} and {}", x.cols(), inputs + padding);
        return Err(misfit(&problem));
    }
    if padding == 0 {
        return Ok(x);
    }
    let Some(dropout) = dropout else {
        let adapted = times_transposed(x.columns(0, inputs)?, frozen.a.whole())?;
        let adapted = adapted.values();
        each_row(x.values_mut(), width, |row, x| x[inputs..].copy_from_slice(&adapted[row * padding..][..padding]));
        return Ok(x);
    };
    for slot in &frozen.adapters.slots {
        let [_, _, a] = frozen.parts(slot)?;
        let adapted = times_transposed(dropped(&x, slot, dropout).whole(), a)?;
        let (adapted, rank) = (adapted.values(), slot.columns.len());
        each_row(x.values_mut(), width, |row, x| {
            x[inputs..][slot.columns.clone()].copy_from_slice(&adapted[row * rank..][..rank]);
        });
    }
    let used = inputs + frozen.adapters.slots.len() * frozen.adapters.rank;
    each_row(x.values_mut(), width, |_, x| x[used..].fill(0.0));
    Ok(x)
}

pub(super) fn project(frozen: &Frozen, x: &Matrix, dropout: Option<&Dropout>, onto: Option<&Matrix>) -> Result<Matrix> {
    let mut y = match (&frozen.dora, dropout) {
        (Some(dora), Some(dropout)) => project_dropped(frozen, dora, x, dropout)?,
        (dora, _) => {
            let mut y = times_transposed(x.whole(), frozen.weight.whole())?;
            if let Some(dora) = dora {
                scale_columns(&mut y, &dora.gains);
            }
            y
        }
    };
    if frozen.bias.is_none() && onto.is_none() {
        return Ok(y);
    }
    let width = y.width();
    each_row(y.values_mut(), width, |row, y| {
        if let Some(bias) = &frozen.bias {
            add(y, bias);
        }
        if let Some(onto) = &onto {
            add(y, &onto.values()[row * onto.width()..]);
        }
    });
    Ok(y)
}

fn scale_columns(y: &mut Matrix, gains: &[f32]) {
    let width = y.width();
    each_row(y.values_mut(), width, |_, y| y.iter_mut().zip(gains).for_each(|(y, gain)| *y *= gain));
}

/// `x W^T + (g - 1) * (dropout(x) W^T) + g * s (dropout(x) A^T) B^T`, without the bias.
fn project_dropped(frozen: &Frozen, dora: &Dora, x: &Matrix, dropout: &Dropout) -> Result<Matrix> {
    let mut y = times_transposed(x.columns(0, frozen.inputs)?, frozen.base()?)?;
    let width = y.width();
    for slot in &frozen.adapters.slots {
        let [base, delta] = dropped_outputs(frozen, slot, x, &dropped(x, slot, dropout))?;
        let (base, delta, len) = (base.values(), delta.values(), slot.rows.len());
        let gains = &dora.gains[slot.rows.clone()];
        each_row(y.values_mut(), width, |row, y| {
            let found = base[row * len..].iter().zip(&delta[row * len..]);
            for ((y, (base, delta)), gain) in y[slot.rows.clone()].iter_mut().zip(found).zip(gains) {
                *y += (gain - 1.0) * base + gain * delta;
            }
        });
    }
    Ok(y)
}

/// A slot's `x A^T`, which an adapted input holds.
fn adapted<'x>(frozen: &Frozen, slot: &Slot, x: &'x Matrix) -> Result<View<'x>> {
    x.columns(frozen.inputs + slot.columns.start, slot.columns.len())
}

/// A slot's `dropout(x) W^T` and `s (dropout(x) A^T) B^T`.
fn dropped_outputs(frozen: &Frozen, slot: &Slot, x: &Matrix, dropped: &Matrix) -> Result<[Matrix; 2]> {
    let [base, b, _] = frozen.parts(slot)?;
    Ok([times_transposed(dropped.whole(), base)?, times_transposed(adapted(frozen, slot, x)?, b)?])
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
            let y = times_transposed(x.whole(), frozen.weight.whole())?;
            for slot in &frozen.adapters.slots {
                add_magnitudes(slot, dora, &products(dy, &y, slot.rows.clone()), gradients);
            }
            drop(y);
            let mut dy = copy(dy, 0, dy.cols());
            scale_columns(&mut dy, &dora.gains);
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
    let (inputs, padding) = (frozen.inputs, frozen.adapters.padding());
    let mut dx = times(dy.columns(0, dy.cols())?, frozen.weight.whole())?.with_cols(inputs);
    if padding == 0 {
        return Ok(dx);
    }
    let scale = frozen.adapters.scale;
    for slot in &frozen.adapters.slots {
        let dy = dy.columns(slot.rows.start, slot.rows.len())?;
        add_scaled(&mut gradients[slot.b.clone()], &transposed_times(dy, adapted(frozen, slot, x)?)?, scale);
    }
    let Some(dropout) = dropout else {
        let dadapted = dx.columns(inputs, padding)?;
        let da = transposed_times(dadapted, x.columns(0, inputs)?)?;
        for slot in &frozen.adapters.slots {
            let rows = slot.columns.start * inputs..slot.columns.end * inputs;
            add(&mut gradients[slot.a.clone()], &da.values()[rows]);
        }
        let (through, width) = (times(dadapted, frozen.a.whole())?, dx.width());
        each_row(dx.values_mut(), width, |row, dx| add(dx, &through.values()[row * inputs..][..inputs]));
        return Ok(dx);
    };
    for slot in &frozen.adapters.slots {
        let [_, _, a] = frozen.parts(slot)?;
        let dadapted = adapted(frozen, slot, &dx)?;
        let da = transposed_times(dadapted, dropped(x, slot, dropout).whole())?;
        add(&mut gradients[slot.a.clone()], da.values());
        let through = times(dadapted, a)?;
        add_dropped(&mut dx, &through, dropout.mask(slot.module), dropout.scale());
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
    let mut dx = times(dy.columns(0, dy.cols())?, frozen.base()?)?;
    for slot in &frozen.adapters.slots {
        let input = dropped(x, slot, dropout);
        let own = copy(dy, slot.rows.start, slot.rows.len());
        for found in dropped_outputs(frozen, slot, x, &input)? {
            add_magnitudes(slot, dora, &products(&own, &found, 0..slot.rows.len()), gradients);
        }

        // The gradients of the two outputs: (g - 1) * dy and g * dy.
        let (mut dbase, mut ddelta) = (own, copy(dy, slot.rows.start, slot.rows.len()));
        let gains = &dora.gains[slot.rows.clone()];
        let less: Vec<f32> = gains.iter().map(|gain| gain - 1.0).collect();
        scale_columns(&mut dbase, &less);
        scale_columns(&mut ddelta, gains);

        let [base, b, a] = frozen.parts(slot)?;
        let db = transposed_times(ddelta.whole(), adapted(frozen, slot, x)?)?;
        add_scaled(&mut gradients[slot.b.clone()], &db, frozen.adapters.scale);
        let dadapted = times(ddelta.whole(), b)?;
        add(&mut gradients[slot.a.clone()], transposed_times(dadapted.whole(), input.whole())?.values());
        for through in [times(dbase.whole(), base)?, times(dadapted.whole(), a)?] {
            add_dropped(&mut dx, &through, dropout.mask(slot.module), dropout.scale());
        }
    }
    Ok(dx)
}

/// Some columns, with no padding.
fn copy(x: &Matrix, start: usize, len: usize) -> Matrix {
    let mut out = Matrix::zeros(x.rows(), len, len);
    each_row(out.values_mut(), len, |row, out| {
        out.copy_from_slice(&x.values()[row * x.width() + start..][..len]);
    });
    out
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

fn add_scaled(out: &mut [f32], x: &Matrix, scale: f32) {
    for (out, x) in out.iter_mut().zip(x.values()) {
        *out += scale * x;
    }
}
