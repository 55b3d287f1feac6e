//! A shape as JSON Schema (draft 2020-12), for editors that complete and check while one types.

use super::shape::{Exclusive, Field, Kind, Need, Shape};
use serde_json::{Map, Value, json};

/// The schema of a whole file. `id` and `title` name it.
pub fn schema(shape: &Shape, title: &str, about: &str) -> Value {
    let mut out = Map::new();
    out.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    out.insert("title".into(), json!(title));
    out.insert("description".into(), json!(about));
    out.extend(table(shape, None));
    Value::Object(out)
}

fn table(shape: &Shape, tag: Option<(&str, &str)>) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut required: Vec<&str> = Vec::new();
    if let Some((tag, name)) = tag {
        properties.insert(tag.into(), json!({ "const": name }));
        required.push(tag);
    }
    for field in shape.fields {
        properties.insert(field.name.into(), property(field));
        if matches!(field.need, Need::Required { .. }) {
            required.push(field.name);
        }
    }
    let mut out = Map::new();
    out.insert("type".into(), json!("object"));
    out.insert("properties".into(), Value::Object(properties));
    if !required.is_empty() {
        out.insert("required".into(), json!(required));
    }
    out.insert("additionalProperties".into(), json!(false));
    let rules: Vec<Value> = shape.exclusive.iter().map(rule).collect();
    if !rules.is_empty() {
        out.insert("allOf".into(), json!(rules));
    }
    out
}

fn rule(group: &Exclusive) -> Value {
    let mut choices: Vec<Value> = group.keys.iter().map(|key| json!({ "required": [key] })).collect();
    if !group.required {
        let any: Vec<Value> = choices.clone();
        choices.push(json!({ "not": { "anyOf": any } }));
    }
    json!({ "oneOf": choices })
}

fn property(field: &Field) -> Value {
    let about = match field.need {
        Need::Optional { default } if !default.is_empty() => format!("{}. Default: {default}.", field.about),
        _ => format!("{}.", field.about),
    };
    let mut out = Map::new();
    out.insert("description".into(), json!(about));
    out.extend(kind(&field.kind));
    Value::Object(out)
}

fn kind(kind: &Kind) -> Map<String, Value> {
    let value = match kind {
        Kind::Text { pattern, .. } => json!({ "type": "string", "pattern": pattern }),
        Kind::Whole { low, high } => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Kind::Number(interval) => {
            let low = if interval.above { "exclusiveMinimum" } else { "minimum" };
            let high = if interval.below { "exclusiveMaximum" } else { "maximum" };
            let mut number = json!({ "type": "number", low: interval.low });
            if interval.high.is_finite() {
                number[high] = json!(interval.high);
            }
            number
        }
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Word { choices, .. } => {
            let mut words: Vec<Value> = Vec::new();
            for choice in choices() {
                words.push(json!({ "const": choice.name, "description": choice.about }));
                for alias in choice.aliases {
                    words.push(json!({ "const": alias, "description": format!("the same as `{}`", choice.name) }));
                }
            }
            json!({ "anyOf": words })
        }
        Kind::Form { forms, .. } => {
            let words: Vec<Value> = forms.iter().map(|(form, about)| form_schema(form, about)).collect();
            json!({ "anyOf": words })
        }
        Kind::List { of, least, most, bare, distinct } => {
            let item = Value::Object(self::kind(of));
            let mut list = json!({ "type": "array", "items": item, "minItems": least, "maxItems": most });
            if *distinct {
                list["uniqueItems"] = json!(true);
            }
            if *bare { json!({ "anyOf": [item, list] }) } else { list }
        }
        Kind::Table(shape) => Value::Object(table(shape, None)),
        Kind::Tagged { tag, shapes } => {
            let tables: Vec<Value> = shapes
                .iter()
                .map(|(name, about, shape)| {
                    let mut out = Map::new();
                    out.insert("description".into(), json!(about));
                    out.extend(table(shape, Some((tag, name))));
                    Value::Object(out)
                })
                .collect();
            json!({ "oneOf": tables })
        }
        Kind::Either(kinds) => {
            let either: Vec<Value> = kinds.iter().map(|one| Value::Object(self::kind(one))).collect();
            json!({ "anyOf": either })
        }
    };
    match value {
        Value::Object(map) => map,
        _ => unreachable!("every arm above makes an object"),
    }
}

/// `none` is a constant; `magnitude:0.8` and `dp=2` stand for their family: a word, a sign, a number. So does each part of `dp=2,tp=2`
/// and of `channel:0.5+int8`.
fn form_schema(form: &str, about: &str) -> Value {
    let is_word = |head: &str| head.starts_with(|c: char| c.is_ascii_alphabetic());
    let mut pattern = String::new();
    for part in form.split_inclusive([',', '+']) {
        let (word, joint) = part.strip_suffix(['+', ',']).map_or((part, ""), |word| (word, &part[word.len()..]));
        match word.rsplit_once([':', '=']) {
            Some((head, number)) if is_word(head) && number.parse::<f64>().is_ok() => {
                let digits = if number.contains('.') { "[0-9.eE+-]+" } else { "[0-9]+" };
                pattern += &format!("{}{digits}", &word[..=head.len()]);
            }
            _ => pattern += word,
        }
        pattern += if joint == "+" { "\\+" } else { joint };
    }
    if pattern == form {
        return json!({ "const": form, "description": about });
    }
    json!({ "type": "string", "pattern": format!("^{pattern}$"), "description": about, "examples": [form] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Choice, Interval};

    static SHAPE: Shape = Shape {
        fields: &[
            Field {
                name: "size",
                about: "Number of them",
                kind: Kind::List { of: &Kind::Whole { low: 1, high: 9 }, least: 1, most: 4, bare: true, distinct: true },
                need: Need::Required { example: "size = 1" },
            },
            Field {
                name: "share",
                about: "Part",
                kind: Kind::Number(Interval::above(0.0, f64::INFINITY)),
                need: Need::Optional { default: "0.5" },
            },
            Field {
                name: "colour",
                about: "Look",
                kind: Kind::Word {
                    what: "colour",
                    choices: || vec![Choice { name: "grey", aliases: &["gray"], about: "neither" }],
                    hint: |_| None,
                },
                need: Need::Optional { default: "" },
            },
        ],
        exclusive: &[Exclusive { keys: &["share", "colour"], required: false }],
    };

    #[test]
    fn a_shape_becomes_the_schema_of_its_files() {
        let schema = schema(&SHAPE, "boxes", "What to pack.");
        assert_eq!((&schema["title"], &schema["required"]), (&json!("boxes"), &json!(["size"])));
        assert_eq!(schema["additionalProperties"], json!(false));
        let properties = &schema["properties"];
        assert_eq!(
            properties["size"]["anyOf"],
            json!([
                { "type": "integer", "minimum": 1, "maximum": 9 },
                {
                    "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 9 },
                    "minItems": 1, "maxItems": 4, "uniqueItems": true
                }
            ])
        );
        assert_eq!(
            properties["share"],
            json!({ "description": "Part. Default: 0.5.", "type": "number", "exclusiveMinimum": 0.0 })
        );
        let words: Vec<&Value> = properties["colour"]["anyOf"].as_array().unwrap().iter().map(|word| &word["const"]).collect();
        assert_eq!(words, ["grey", "gray"]);
        assert_eq!(schema["allOf"][0]["oneOf"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_form_with_a_number_becomes_a_pattern() {
        assert_eq!(form_schema("magnitude:0.8", "")["pattern"], "^magnitude:[0-9.eE+-]+$");
        assert_eq!(form_schema("dp=2", "")["pattern"], "^dp=[0-9]+$");
        assert_eq!(form_schema("2:4", "")["const"], "2:4");
    }
}
