//! Event files of `TensorBoard`: protobuf messages written by hand, in the frames of `TFRecord`.
//!
//! The formats: `event.proto` and `summary.proto` of tensorboard, and `record_writer.py` there.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::append::Appended;
use super::record::Record;
use super::{Watch, sync_dir};
use crate::error::{Error, Result};

/// Appends records to an event file.
#[derive(Debug)]
pub struct EventFile {
    file: Appended,
}

impl EventFile {
    /// A new event file in `dir`, of a run that has done `done` steps: readers forget what older files there have of
    /// later steps.
    pub fn create(dir: &Path, done: u64) -> Result<Self> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let now = now();
        let n = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("events.out.tfevents.{:010}.{}.{}.{n}", now.floor(), host(), std::process::id());
        let path = dir.join(name);
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut events = Self { file: Appended::new(file, &path)? };
        events.write(&Event::version(now))?;
        if done > 0 {
            events.write(&Event::start(now, done + 1))?;
        }
        sync_dir(dir)?;
        Ok(events)
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        self.file.add(&frame(&event.0))
    }
}

impl Watch for EventFile {
    fn record(&mut self, record: &Record) -> Result<()> {
        self.write(&Event::scalars(now(), record.at.step, &record.scalars()))
    }

    fn finish(&mut self) -> Result<()> {
        self.file.finish()
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// This machine's name, as a part of a file's.
fn host() -> String {
    let mut name = String::new();
    let kernel = File::open("/proc/sys/kernel/hostname").and_then(|file| file.take(64).read_to_string(&mut name));
    if kernel.is_err() {
        name = std::env::var("HOSTNAME").unwrap_or_default();
    }
    let name = name.trim().chars().take(64);
    let name: String = name.map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' }).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// The bytes of an `Event`.
struct Event(Vec<u8>);

/// Field numbers of the messages, by message.
mod field {
    pub(super) const EVENT_WALL_TIME: u8 = 1;
    pub(super) const EVENT_STEP: u8 = 2;
    pub(super) const EVENT_FILE_VERSION: u8 = 3;
    pub(super) const EVENT_SUMMARY: u8 = 5;
    pub(super) const EVENT_SESSION_LOG: u8 = 7;
    pub(super) const SUMMARY_VALUE: u8 = 1;
    pub(super) const VALUE_TAG: u8 = 1;
    pub(super) const VALUE_SIMPLE_VALUE: u8 = 2;
    pub(super) const SESSION_LOG_STATUS: u8 = 1;
}

/// `SessionLog.START`: what older files have of this step and later ones is no more.
const START: u64 = 1;

impl Event {
    fn new(wall_time: f64, step: u64) -> Self {
        let mut out = Vec::new();
        fixed64(&mut out, field::EVENT_WALL_TIME, wall_time);
        // As protobuf 3 has it, a field with the default value is not written.
        if step > 0 {
            number(&mut out, field::EVENT_STEP, step);
        }
        Self(out)
    }

    /// What a file begins with.
    fn version(wall_time: f64) -> Self {
        let mut event = Self::new(wall_time, 0);
        bytes(&mut event.0, field::EVENT_FILE_VERSION, b"brain.Event:2");
        event
    }

    /// A run is taken up at `step`.
    fn start(wall_time: f64, step: u64) -> Self {
        let mut event = Self::new(wall_time, step);
        let mut session = Vec::new();
        number(&mut session, field::SESSION_LOG_STATUS, START);
        bytes(&mut event.0, field::EVENT_SESSION_LOG, &session);
        event
    }

    /// Values of `step`, by their tags.
    fn scalars(wall_time: f64, step: u64, scalars: &[(String, f64)]) -> Self {
        let mut event = Self::new(wall_time, step);
        let mut summary = Vec::new();
        for (tag, scalar) in scalars {
            let mut value = Vec::new();
            bytes(&mut value, field::VALUE_TAG, tag.as_bytes());
            fixed32(&mut value, field::VALUE_SIMPLE_VALUE, *scalar as f32);
            bytes(&mut summary, field::SUMMARY_VALUE, &value);
        }
        bytes(&mut event.0, field::EVENT_SUMMARY, &summary);
        event
    }
}

// A field of protobuf: its number and the kind of what follows (0 varint, 1 eight bytes, 2 length and bytes, 5 four
// bytes) in one byte, then that.

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

fn fixed64(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn fixed32(out: &mut Vec<u8>, field: u8, value: f32) {
    out.push(field << 3 | 5);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// A record of `TFRecord`: its length and itself, a checksum after each.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()];
    parts.concat()
}

/// The checksum of `TFRecord`: a CRC that is changed, so that data that holds its own CRC does not check badly.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli): polynomial 0x1edc6f41, reflected.
fn crc32c(data: &[u8]) -> u32 {
    let byte = |crc: u32, byte: &u8| CRC[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
    !data.iter().fold(!0, byte)
}

/// What each byte does to a CRC.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::super::record::{Figures, Moment, Train};
    use super::*;

    /// Made by `fixtures/make_events.py` with tensorboard's own writer.
    const GOLDEN: &[u8] = include_bytes!("../../../fixtures/train/events.out.tfevents");

    #[test]
    fn bytes_are_those_of_tensorboards_writer() {
        let scalars = |pairs: &[(&str, f64)]| -> Vec<(String, f64)> {
            pairs.iter().map(|(tag, value)| ((*tag).to_owned(), *value)).collect()
        };
        let train = scalars(&[
            ("train/loss", 2.345_678_9),
            ("train/grad_norm", 0.5),
            ("train/learning_rate", 2e-4),
            ("train/epoch", 0.125),
            ("train/tokens_per_second", 6140.25),
        ]);
        let events = [
            Event::version(1_700_000_000.125),
            Event::start(1_700_000_000.25, 20),
            Event::scalars(1_700_000_001.5, 20, &train),
            Event::scalars(
                1_700_000_002.75,
                300,
                &scalars(&[("eval/loss", 1.5), ("eval/perte_d’évaluation", f64::NAN)]),
            ),
            Event::scalars(
                1_700_000_003.0,
                5_000_000_000,
                &scalars(&[("train/loss", 0.0), ("train/inf", f64::INFINITY)]),
            ),
            Event::scalars(1_700_000_004.0, 0, &scalars(&[("train/loss", -1.0)])),
        ];
        let got: Vec<u8> = events.iter().flat_map(|event| frame(&event.0)).collect();
        assert_eq!(got.len(), GOLDEN.len());
        let differ = got.iter().zip(GOLDEN).position(|(a, b)| a != b);
        assert_eq!(differ, None);
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_record_is_in_the_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let mut events = EventFile::create(&runs, 0).unwrap();
        let name = events.file.path().file_name().unwrap().to_str().unwrap().to_owned();
        let parts: Vec<&str> = name.split('.').collect();
        assert_eq!((parts.len(), &parts[..3]), (7, &["events", "out", "tfevents"][..]), "{name}");
        assert!(parts[3].len() == 10 && parts[3].parse::<u64>().unwrap() > 1_700_000_000, "{name}");
        assert_eq!(parts[5], std::process::id().to_string());
        let size = || fs::metadata(runs.join(&name)).unwrap().len();
        let begun = size();
        assert_eq!(begun, 16 + 9 + 2 + 13);
        let at = Moment { step: 7, ..Moment::default() };
        events.record(&Record { at, figures: Figures::Train(Train::default()) }).unwrap();
        assert!(size() > begun);
        let resumed = EventFile::create(&runs, 7).unwrap();
        assert!(fs::read(resumed.file.path()).unwrap().windows(4).any(|bytes| bytes == [2 << 3, 8, 7 << 3 | 2, 2]));
        assert_eq!(fs::read_dir(&runs).unwrap().count(), 2);
    }
}
