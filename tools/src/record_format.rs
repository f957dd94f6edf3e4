//! How a record is printed: format strings in kcat's notation, and JSON.

use crate::time;
use flumen_wire::batch::{Headers, Record};
use serde_json::{Map, Value, json};

/// A format string, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordFormat(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(Vec<u8>),
    Key,
    KeyLength,
    Value,
    ValueLength,
    Topic,
    Partition,
    Offset,
    Timestamp,
    Date,
    Headers,
}

impl RecordFormat {
    /// Reads a format string. The error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<RecordFormat, String> {
        let mut tokens = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '%' => {
                    let token = token(rest.next())?;
                    let Some(token) = token else {
                        literal.push(b'%');
                        continue;
                    };
                    if !literal.is_empty() {
                        tokens.push(Token::Literal(std::mem::take(&mut literal)));
                    }
                    tokens.push(token);
                }
                '\\' => literal.extend_from_slice(&escape(&mut rest)?),
                other => literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !literal.is_empty() {
            tokens.push(Token::Literal(literal));
        }
        Ok(RecordFormat(tokens))
    }

    /// One that is written in this program.
    pub(crate) fn known(text: &'static str) -> RecordFormat {
        RecordFormat::parse(text).expect("a format that was tried")
    }

    /// Appends a record. Null is nothing; lengths of null are -1.
    pub(crate) fn write(&self, topic: &str, partition: i32, record: &Record<'_>, out: &mut Vec<u8>) {
        let length = |field: Option<&[u8]>| field.map_or(-1, |bytes| bytes.len() as i64);
        for token in &self.0 {
            match token {
                Token::Literal(bytes) => out.extend_from_slice(bytes),
                Token::Key => out.extend_from_slice(record.key.unwrap_or_default()),
                Token::Value => out.extend_from_slice(record.value.unwrap_or_default()),
                Token::KeyLength => number(length(record.key), out),
                Token::ValueLength => number(length(record.value), out),
                Token::Topic => out.extend_from_slice(topic.as_bytes()),
                Token::Partition => number(partition.into(), out),
                Token::Offset => number(record.offset, out),
                Token::Timestamp => number(record.timestamp, out),
                Token::Date => out.extend_from_slice(time::print(record.timestamp).as_bytes()),
                Token::Headers => headers(record.headers, out),
            }
        }
    }
}

/// None for a percent sign.
fn token(letter: Option<char>) -> Result<Option<Token>, String> {
    Ok(Some(match letter {
        Some('%') => return Ok(None),
        Some('k') => Token::Key,
        Some('K') => Token::KeyLength,
        Some('v' | 's') => Token::Value,
        Some('V' | 'S') => Token::ValueLength,
        Some('t') => Token::Topic,
        Some('p') => Token::Partition,
        Some('o') => Token::Offset,
        Some('T') => Token::Timestamp,
        Some('d') => Token::Date,
        Some('h') => Token::Headers,
        Some(other) => {
            return Err(format!(
                "%{other} is unknown; there are %k %v %o %p %t %T %d %h %K %S, and %% for a percent sign"
            ));
        }
        None => return Err("a percent sign at the end; write %% for one".to_owned()),
    }))
}

/// What follows a backslash.
fn escape(rest: &mut std::str::Chars<'_>) -> Result<Vec<u8>, String> {
    Ok(vec![match rest.next() {
        Some('n') => b'\n',
        Some('r') => b'\r',
        Some('t') => b'\t',
        Some('0') => 0,
        Some('\\') => b'\\',
        Some('x') => {
            let digits: String = rest.by_ref().take(2).collect();
            let valid = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let byte = valid.then(|| u8::from_str_radix(&digits, 16).ok()).flatten();
            byte.ok_or_else(|| format!("\\x{digits}: two hexadecimal digits are needed"))?
        }
        Some(other) => return Err(format!("\\{other} is unknown; there are \\n \\r \\t \\0 \\\\ \\xHH")),
        None => return Err("a backslash at the end; write \\\\ for one".to_owned()),
    }])
}

/// A text in which only escapes mean something, as a separator is given.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => out.extend_from_slice(&escape(&mut rest)?),
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Ok(out)
}

fn number(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
}

/// `a=1,b=2`, as kcat prints them.
fn headers(headers: Headers<'_>, out: &mut Vec<u8>) {
    for (place, (key, value)) in headers.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value.unwrap_or(b"NULL"));
    }
}

/// A record as a JSON object. What is not UTF-8 becomes `{"base64": ...}`.
pub(crate) fn json(topic: &str, partition: i32, record: &Record<'_>) -> Value {
    let headers: Vec<Value> = record
        .headers
        .map(|(key, value)| json!({ "key": bytes(Some(key)), "value": bytes(value) }))
        .collect();
    json!({
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": bytes(record.key),
        "value": bytes(record.value),
        "headers": headers,
    })
}

fn bytes(field: Option<&[u8]>) -> Value {
    match field.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(_)) => {
            let encoded = base64(field.unwrap_or_default());
            Value::Object(Map::from_iter([("base64".to_owned(), encoded.into())]))
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let is_padding = place > chunk.len();
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if is_padding { '=' } else { char::from(digit) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_wire::batch::{BatchBuilder, Batches, NewRecord};
    use flumen_wire::compression::Compression;

    fn with_record<T>(record: NewRecord<'_>, look: impl FnOnce(&Record<'_>) -> T) -> T {
        let mut builder = BatchBuilder::new(Compression::None).at(41, 0);
        builder.push(NewRecord::default()).push(record);
        let batch = builder.build();
        let batch = Batches::new(&batch).next().expect("one").expect("sound");
        let records = batch.records(1000).expect("readable");
        let record = records.iter().nth(1).expect("two").expect("sound");
        look(&record)
    }

    fn record() -> NewRecord<'static> {
        NewRecord {
            timestamp: 1_700_000_000_000,
            key: Some(b"key"),
            value: Some(b"a value"),
            headers: &[(b"a", Some(b"1")), (b"b", None)],
        }
    }

    fn show(format: &str, record: NewRecord<'_>) -> String {
        let format = RecordFormat::parse(format).expect("a format");
        let mut out = Vec::new();
        with_record(record, |record| format.write("t", 3, record, &mut out));
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn every_letter() {
        let all = "%t[%p] %o %T %d %k/%K %v/%s/%S %h 100%%\\n";
        let expected =
            "t[3] 42 1700000000000 2023-11-14T22:13:20.000Z key/3 a value/a value/7 a=1,b=NULL 100%\n";
        assert_eq!(show(all, record()), expected);
        assert_eq!(show("%k|%K|%v|%S|%h", NewRecord::default()), "|-1||-1|");
        assert_eq!(show("\\t\\x41\\0\\\\\\r—%o", record()), "\tA\0\\\r—42");
        assert_eq!(show("", record()), "");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (format, fault) in [
            ("%y", "%y is unknown"),
            ("%", "percent sign at the end"),
            ("\\", "backslash at the end"),
            ("\\q", "\\q is unknown"),
            ("\\x4", "two hexadecimal digits"),
            ("\\x+1", "two hexadecimal digits"),
            ("\\xé1", "two hexadecimal digits"),
        ] {
            let said = RecordFormat::parse(format).expect_err(format);
            assert!(said.contains(fault), "{format}: {said}");
        }
        assert_eq!(unescape("\\t").as_deref(), Ok(&b"\t"[..]));
        assert_eq!(unescape("%k:").as_deref(), Ok(&b"%k:"[..]));
    }

    #[test]
    fn json_keeps_null_text_and_bytes_apart() {
        let shown = with_record(record(), |record| json("t", 3, record).to_string());
        let expected = r#"{"headers":[{"key":"a","value":"1"},{"key":"b","value":null}],"key":"key","offset":42,"partition":3,"timestamp":1700000000000,"topic":"t","value":"a value"}"#;
        assert_eq!(shown, expected);
        let binary = NewRecord { value: Some(&[0xff, 0xfe]), ..Default::default() };
        let shown = with_record(binary, |record| json("t", 0, record));
        assert_eq!((&shown["value"]["base64"], &shown["key"]), (&json!("//4="), &Value::Null));
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }
}
