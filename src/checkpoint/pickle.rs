//! The pickle inside a file of torch.save: names of tensors, and where their values lie. It is read as data: nothing is
//! imported, nothing is called, and memory grows with the file's length alone. Which file holds it is in `torch`.

use std::collections::HashMap;

use safetensors::Dtype;

/// A tensor as the pickle describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From one index of each axis to the next, in elements.
    pub(super) strides: Vec<usize>,
    /// The name of its storage.
    pub(super) storage: String,
    /// Its first element in the storage.
    pub(super) offset: usize,
}

/// torch's names of storages, and what they hold.
const STORAGES: [(&str, Dtype); 9] = [
    ("FloatStorage", Dtype::F32),
    ("DoubleStorage", Dtype::F64),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
];

/// A place in [`Reader::values`].
type Id = usize;

/// What the opcodes make. Containers hold places, so that sharing copies nothing and nesting is no recursion.
#[derive(Debug)]
enum Value {
    Int(i64),
    Text(String),
    Class(String, String),
    Tuple(Vec<Id>),
    List,
    Dict(Vec<(Id, Id)>),
    /// A call that is not made: what would be called, and with what.
    Call(Id, Id),
    /// A reference to a storage.
    Stored(Id),
    /// None, true, false, a number with a point.
    Plain,
}

/// Reads the pickle of a dictionary from names to tensors, in its order.
pub(super) fn read(pickle: &[u8]) -> Result<Vec<(String, StoredTensor)>, String> {
    let mut reader =
        Reader { rest: pickle, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    while reader.step()? {}
    let root = reader.pop()?;
    let Value::Dict(entries) = &reader.values[root] else {
        return Err("holds no dictionary of tensors".to_owned());
    };
    let entry = |(name, value): &(Id, Id)| {
        let Value::Text(name) = &reader.values[*name] else { return Err("has a key that is not text".to_owned()) };
        let tensor = reader.tensor(*value).ok_or_else(|| format!("{name} is not an ordinary tensor"))?;
        Ok((name.clone(), tensor))
    };
    entries.iter().map(entry).collect()
}

struct Reader<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// How high the stack was at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Reader<'_> {
    /// Does one opcode; `false` after the last. Opcodes: Python's `pickletools`.
    fn step(&mut self) -> Result<bool, String> {
        match self.take(1)?[0] {
            b'.' => return Ok(false),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => self.tuple_above_mark()?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'N' | 0x88 | 0x89 => self.push(Value::Plain),
            b'G' => {
                self.take(8)?;
                self.push(Value::Plain);
            }
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let bytes = self.array::<4>()?;
                self.push(Value::Int(i32::from_le_bytes(bytes).into()));
            }
            0x8a => self.long()?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Class(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let class = match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name)) => Value::Class(module.clone(), name.clone()),
                    _ => return Err(damaged()),
                };
                self.push(class);
            }
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let at = self.memo.len() as u64;
                let top = self.top()?;
                self.memo.insert(at, top);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Stored(id));
            }
            b'R' | 0x81 => self.call()?,
            // State of an object, such as an OrderedDict's attributes, and items of lists: no tensor is there.
            b'b' | b'a' => drop(self.pop()?),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.insert(&items)?;
            }
            b'e' => drop(self.above_mark()?),
            other => return Err(format!("has opcode {other:#04x}, which files of tensors don't use")),
        }
        Ok(true)
    }

    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    /// An unsigned number of `len` bytes, at most eight.
    fn unsigned(&mut self, len: usize) -> Result<u64, String> {
        Ok(self.take(len)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn integer(&mut self, len: usize) -> Result<(), String> {
        let number = self.unsigned(len)?;
        self.push(Value::Int(i64::try_from(number).map_err(|_| damaged())?));
        Ok(())
    }

    fn long(&mut self) -> Result<(), String> {
        let len = self.unsigned(1)? as usize;
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(damaged());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let len = usize::try_from(self.unsigned(len)?).map_err(|_| damaged())?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| damaged())?.to_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let len = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let line = std::str::from_utf8(self.take(len)?).map_err(|_| damaged())?.to_owned();
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(damaged)
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(damaged)
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let height = self.marks.pop().filter(|height| *height <= self.stack.len()).ok_or_else(damaged)?;
        Ok(self.stack.split_off(height))
    }

    fn tuple_above_mark(&mut self) -> Result<(), String> {
        let items = self.above_mark()?;
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<(), String> {
        let height = self.stack.len().checked_sub(len).ok_or_else(damaged)?;
        let items = self.stack.split_off(height);
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn put(&mut self, len: usize) -> Result<(), String> {
        let (at, top) = (self.unsigned(len)?, self.top()?);
        self.memo.insert(at, top);
        Ok(())
    }

    fn get(&mut self, len: usize) -> Result<(), String> {
        let at = self.unsigned(len)?;
        let id = *self.memo.get(&at).ok_or_else(damaged)?;
        self.stack.push(id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let is_dict = matches!(&self.values[callable], Value::Class(_, name) if name == "OrderedDict");
        self.push(if is_dict { Value::Dict(Vec::new()) } else { Value::Call(callable, args) });
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        let Value::Dict(entries) = &mut self.values[top] else { return Err(damaged()) };
        entries.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    /// The tensor that the call at `id` would make: `torch._utils._rebuild_tensor_v2`, or a parameter around one.
    fn tensor(&self, id: Id) -> Option<StoredTensor> {
        let (name, args) = self.called(id)?;
        let (name, args) = if name == "_rebuild_parameter" { self.called(*args.first()?)? } else { (name, args) };
        let (true, [storage, offset, shape, strides, ..]) = (name == "_rebuild_tensor_v2", args) else { return None };
        let Value::Stored(storage) = &self.values[*storage] else { return None };
        let [_, class, key, ..] = self.items(*storage)? else { return None };
        let (Value::Class(_, class), Value::Text(key)) = (&self.values[*class], &self.values[*key]) else {
            return None;
        };
        Some(StoredTensor {
            dtype: STORAGES.iter().find(|(name, _)| name == class)?.1,
            shape: self.lengths(*shape)?,
            strides: self.lengths(*strides)?,
            storage: key.clone(),
            offset: self.length(*offset)?,
        })
    }

    fn called(&self, id: Id) -> Option<(&str, &[Id])> {
        let Value::Call(callable, args) = &self.values[id] else { return None };
        let Value::Class(module, name) = &self.values[*callable] else { return None };
        (module == "torch._utils").then_some(())?;
        Some((name, self.items(*args)?))
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(items) = &self.values[id] { Some(items) } else { None }
    }

    fn lengths(&self, id: Id) -> Option<Vec<usize>> {
        self.items(id)?.iter().map(|id| self.length(*id)).collect()
    }

    fn length(&self, id: Id) -> Option<usize> {
        if let Value::Int(number) = self.values[id] { usize::try_from(number).ok() } else { None }
    }
}

fn damaged() -> String {
    "has a damaged pickle".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `pickle` writes of `{"w": tensor}`: a storage of f32 with key "0", offset 2, shape (3, 4), strides (4, 1).
    const TENSOR: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03\
        ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x0etq\x07QK\x02K\x03K\x04\x86q\x08K\x04K\x01\x86\
        q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.";

    #[test]
    fn a_tensor_is_a_place_in_a_storage() {
        let expected = StoredTensor {
            dtype: Dtype::F32,
            shape: vec![3, 4],
            strides: vec![4, 1],
            storage: "0".to_owned(),
            offset: 2,
        };
        assert_eq!(read(TENSOR), Ok(vec![("w".to_owned(), expected)]));
        for cut in 0..TENSOR.len() {
            assert!(read(&TENSOR[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_tensor_is_refused_and_nothing_is_called() {
        let system = b"\x80\x02}X\x01\x00\x00\x00wcposix\nsystem\nX\x02\x00\x00\x00id\x85Rs.";
        assert_eq!(read(system), Err("w is not an ordinary tensor".to_owned()));
        assert!(read(b"\x80\x02].").unwrap_err().contains("no dictionary"));
        assert!(read(b"(i").unwrap_err().contains("opcode 0x69"));
        // A tuple of itself twice, forty times over: places, not copies.
        let doubling = [&b"\x80\x02)"[..], &b"q\x00h\x00\x86".repeat(40), b"0."].concat();
        assert!(read(&doubling).is_err());
        assert!(read(&[&b"\x80\x02)"[..], &b"\x85".repeat(1 << 20), b"."].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0..TENSOR.len(), byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = TENSOR.to_vec();
            bytes[at] = byte;
            let _ = read(&bytes);
            bytes.truncate(at);
            bytes.extend(tail);
            let _ = read(&bytes);
        }
    }
}
