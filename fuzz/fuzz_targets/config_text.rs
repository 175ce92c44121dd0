//! The config as text. What was set is what is read, and nothing else has changed.
//! An input is a line with a path of keys, joined by dots, and the text of the config below it.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qft::checkpoint::ConfigText;
use serde_json::{Value, json};

fuzz_target!(|input: &str| {
    let Some((path, text)) = input.split_once('\n') else { return };
    let keys: Vec<&str> = path.split('.').collect();
    let Ok(mut config) = ConfigText::parse(Path::new("config.json"), text.to_owned()) else { return };
    // qft's reader goes into what it must alone; the check needs a text that can be read whole.
    let Ok(mut expected) = serde_json::from_str::<Value>(text) else { return };
    let value = json!({"set": "}"});
    if config.set(&keys, &value) {
        assert_eq!(config.get(&keys), Some(value.clone()), "{}", config.text());
        put(&mut expected, &keys, value);
    } else {
        assert_eq!(config.text(), text);
    }
    let found: Value = serde_json::from_str(config.text()).expect("the text is still JSON");
    assert_eq!(found, expected);
});

/// Sets the value at `keys`, whose parents are there.
fn put(object: &mut Value, keys: &[&str], value: Value) {
    let (last, parents) = keys.split_last().expect("a path has at least one key");
    let parent = parents.iter().fold(object, |object, key| &mut object[*key]);
    parent[*last] = value;
}
