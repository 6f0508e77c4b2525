//! YAML as JSON: what cannot be said in JSON is an error rather than a guess.

use serde_json::{Map, Number, Value};
use serde_yaml_ng::Value as Yaml;

/// Reads one YAML document.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let yaml: Yaml = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    json(yaml)
}

fn json(yaml: Yaml) -> Result<Value, String> {
    match yaml {
        Yaml::Null => Ok(Value::Null),
        Yaml::Bool(flag) => Ok(Value::Bool(flag)),
        Yaml::Number(number) => self::number(&number),
        Yaml::String(text) => Ok(Value::String(text)),
        Yaml::Sequence(items) => items.into_iter().map(json).collect(),
        Yaml::Mapping(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                let Yaml::String(name) = key else {
                    return Err(format!(
                        "the key {} is not text; put it in quotes",
                        inline(&key)
                    ));
                };
                object.insert(name, json(value)?);
            }
            Ok(Value::Object(object))
        }
        Yaml::Tagged(tagged) => Err(format!("the tag {} has no meaning here", tagged.tag)),
    }
}

fn number(number: &serde_yaml_ng::Number) -> Result<Value, String> {
    let read = number
        .as_u64()
        .map(Number::from)
        .or_else(|| number.as_i64().map(Number::from))
        .or_else(|| number.as_f64().and_then(Number::from_f64));
    read.map(Value::Number)
        .ok_or_else(|| format!("{number} is not a number that can be used"))
}

fn inline(key: &Yaml) -> String {
    serde_yaml_ng::to_string(key)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
