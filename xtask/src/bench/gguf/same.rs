//! Whether two files are the same, read from their ends: tensors are last in a GGUF file, after metadata that may differ.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;

const BLOCK: u64 = 1 << 20;

/// What two files have in common.
#[derive(Debug, PartialEq)]
pub(super) enum Same {
    /// Every byte.
    Whole,
    /// The bytes of all tensors; what is before them differs.
    Tensors,
    /// So many bytes at their ends, of so many in the first.
    End(u64, u64),
}

impl Same {
    /// Compares two files, the first of which has `tensors` bytes of tensors, without padding, at its end.
    pub(super) fn of(ours: &Path, theirs: &Path, tensors: u64) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
            opened.with_context(|| format!("cannot open {}", path.display()))
        };
        let ((a_len, a), (b_len, b)) = (open(ours)?, open(theirs)?);
        let same = common_end((&a, a_len), (&b, b_len)).context("cannot compare the files")?;
        Ok(match same {
            _ if same == a_len && a_len == b_len => Self::Whole,
            _ if same >= tensors => Self::Tensors,
            _ => Self::End(same, a_len),
        })
    }
}

impl fmt::Display for Same {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => write!(f, "identical"),
            Self::Tensors => write!(f, "tensors identical, metadata differ"),
            Self::End(same, of) => write!(f, "differ; the last {same} of {of} bytes are equal"),
        }
    }
}

/// How many bytes at the ends of two files are equal.
fn common_end((a, a_len): (&File, u64), (b, b_len): (&File, u64)) -> std::io::Result<u64> {
    let most = a_len.min(b_len);
    let mut same = 0;
    while same < most {
        let len = BLOCK.min(most - same);
        let read = |file: &File, end: u64| {
            let mut block = vec![0; len as usize];
            file.read_exact_at(&mut block, end - same - len).map(|()| block)
        };
        let (a, b) = (read(a, a_len)?, read(b, b_len)?);
        let equal = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count() as u64;
        same += equal;
        if equal < len {
            break;
        }
    }
    Ok(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_files_begin_to_differ() {
        let dir = std::env::temp_dir().join(format!("xtask-same-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let long = vec![7; BLOCK as usize + 9];
        let mut other = long.clone();
        other[3] = 0;
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let (a, b, shorter) = (file("a", &long), file("b", &other), file("c", &long[1..]));
        let (len, half) = (BLOCK + 9, BLOCK / 2);
        assert_eq!(Same::of(&a, &a, half).unwrap(), Same::Whole);
        assert_eq!(Same::of(&a, &b, half).unwrap(), Same::Tensors);
        assert_eq!(Same::of(&a, &b, BLOCK + 6).unwrap(), Same::End(BLOCK + 5, len));
        assert_eq!(Same::of(&a, &shorter, len).unwrap(), Same::End(BLOCK + 8, len));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
