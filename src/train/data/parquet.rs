//! Rows of a Parquet file, as the `datasets` library writes them: columns of text, and lists of structs of text. Only
//! the columns that a row is made of are decoded.

mod footer;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value, json};

use super::columns;
use super::json::Found;
use crate::caught::caught;
use crate::error::{Error, Result, escaped};

const FIX_FILE: &str = "restore the file from its source, or write it again (snappy, zstd or no compression)";
const FIX_COLUMNS: &str = "name the column of messages `messages` (a list of structs of role and content), or give \
                           `query` and `response`";
/// Deepest nesting of a schema. A list of structs has 4 levels.
const MAX_DEPTH: usize = 64;

/// Calls `found` with each row of the file and its number, from 1. What can't be decoded is a bad file.
pub(super) fn each_row(path: &Path, file: File, found: &mut Found<'_>) -> Result<()> {
    // The crate asserts what a writer owes it, so a hostile file ends in a panic. What `found` keeps is whole rows.
    caught(|| read(path, file, found)).unwrap_or_else(|_| {
        Err(Error::malformed(path, "is not valid Parquet: its columns contradict its schema", FIX_FILE))
    })
}

fn read(path: &Path, mut file: File, found: &mut Found<'_>) -> Result<()> {
    if footer::is_deeper(&mut file, MAX_DEPTH).map_err(Error::io("read", path))? {
        return Err(Error::malformed(path, format!("has columns nested deeper than {MAX_DEPTH} levels"), FIX_COLUMNS));
    }
    let bad = |error: ParquetError| Error::malformed(path, escaped(&error.to_string()), FIX_FILE);
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    let fields: Vec<Arc<Type>> =
        schema.get_fields().iter().filter(|field| columns::is_known(field.name())).cloned().collect();
    if fields.is_empty() {
        let names: Vec<String> = schema.get_fields().iter().take(8).map(|field| escaped(field.name())).collect();
        let problem = format!("has no known column; it has {}", names.join(", "));
        return Err(Error::malformed(path, problem, FIX_COLUMNS));
    }
    let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(bad)?;
    for (number, row) in (1..).zip(reader.get_row_iter(Some(wanted)).map_err(bad)?) {
        found(number, Ok(object(&row.map_err(bad)?)))?;
    }
    Ok(())
}

/// A struct as an object. Null fields are left out: one schema for all rows gives each the fields of every other.
fn object(row: &Row) -> Value {
    let fields = row.get_column_iter().filter(|(_, field)| !matches!(field, Field::Null));
    Value::Object(fields.map(|(name, field)| (name.clone(), value(field))).collect())
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => json!(value),
        Field::Byte(value) => json!(value),
        Field::Short(value) => json!(value),
        // Times count as numbers: no content, whoever looks for text.
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => json!(value),
        Field::Long(value)
        | Field::TimeMicros(value)
        | Field::TimestampMillis(value)
        | Field::TimestampMicros(value) => json!(value),
        Field::UByte(value) => json!(value),
        Field::UShort(value) => json!(value),
        Field::UInt(value) => json!(value),
        Field::ULong(value) => json!(value),
        Field::Float16(value) => json!(value.to_f32()),
        Field::Float(value) => json!(value),
        Field::Double(value) => json!(value),
        Field::Str(text) => json!(text),
        // Old writers leave text unmarked; what isn't text must not pass for it.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => json!(text),
            Err(_) => json!({"bytes": bytes.len()}),
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v))).collect::<Map<_, _>>())
        }
        Field::Decimal(_) => json!(0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/train_data").join(name)
    }

    fn rows(path: &Path) -> Result<Vec<(u64, Value)>> {
        let mut rows = Vec::new();
        each_row(path, File::open(path).unwrap(), &mut |number, row| {
            rows.push((number, row.unwrap()));
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn reads_lists_of_structs_without_their_nulls() {
        let found = rows(&fixture("chat.snappy.parquet")).unwrap();
        assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(found[0].1["conversations"][1], json!({"from": "gpt", "value": "你好！"}));
        // The column `id` is not one of a conversation's.
        assert_eq!(found[0].1.as_object().unwrap().keys().collect::<Vec<_>>(), ["conversations", "system"]);
        assert_eq!(found[3].1, json!({"conversations": []}));
    }

    #[test]
    fn a_file_without_known_columns_is_named_with_its_columns() {
        let error = rows(&fixture("other.parquet")).unwrap_err().to_string();
        assert!(error.contains("it has id, score"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn no_damaged_file_panics(
            name in prop_oneof![Just("chat.snappy.parquet"), Just("tools.zstd.parquet")],
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut bytes = std::fs::read(fixture(name)).unwrap();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let _ = rows(file.path());
        }
    }
}
