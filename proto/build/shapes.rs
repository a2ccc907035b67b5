//! Generates what src/memory.rs knows of each message: its size in memory, and which fields take memory of their own.

use std::collections::BTreeSet;
use std::fmt::Write;

use protox::prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use protox::prost_reflect::prost_types::{FieldDescriptorProto, FileDescriptorSet};

/// The shapes of all messages, as Rust.
pub fn generate(descriptors: &FileDescriptorSet) -> Result<String, String> {
    let methods = descriptors.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
    let requests: BTreeSet<&str> = methods.map(|method| plain(method.input_type())).collect();
    let mut rust = String::new();
    let mut all = String::new();
    for message in descriptors.file.iter().flat_map(|file| &file.message_type) {
        if !message.nested_type.is_empty() {
            return Err(format!(
                "{} has messages (or maps) within: shapes know of none; take them out",
                message.name()
            ));
        }
        let name = message.name();
        let fields: String = message.field.iter().map(field).collect();
        let request = requests.contains(name);
        let upper = constant(name);
        writeln!(
            rust,
            "static {upper}: Shape = Shape {{ name: \"{name}\", bytes: size_of::<crate::v1::{name}>(), request: {request}, fields: &[{fields}] }};\n\
             impl Shaped for crate::v1::{name} {{ const SHAPE: &'static Shape = &{upper}; }}"
        )
        .map_err(|error| error.to_string())?;
        write!(all, "$visit!({name});").map_err(|error| error.to_string())?;
    }
    Ok(format!(
        "{rust}\n/// Calls a macro with each message's type.\n#[macro_export]\nmacro_rules! each_message {{ ($visit:ident) => {{ {all} }}; }}\n"
    ))
}

fn plain(type_name: &str) -> &str {
    type_name.rsplit('.').next().unwrap_or(type_name)
}

fn constant(name: &str) -> String {
    let mut upper = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !upper.is_empty() {
            upper.push('_');
        }
        upper.extend(letter.to_uppercase());
    }
    upper
}

fn field(field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message => format!("Kind::Message(&{})", constant(plain(field.type_name()))),
        Type::String => "Kind::String".into(),
        Type::Bytes => "Kind::Bytes".into(),
        Type::Fixed32 | Type::Sfixed32 | Type::Float => "Kind::Fixed32".into(),
        Type::Fixed64 | Type::Sfixed64 | Type::Double => "Kind::Fixed64".into(),
        _ => "Kind::Varint".into(),
    };
    let repeated = field.label() == Label::Repeated;
    format!("Field {{ number: {}, repeated: {repeated}, kind: {kind} }},", field.number())
}
