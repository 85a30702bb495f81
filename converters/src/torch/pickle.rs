//! A pickle machine that builds data and executes nothing.
//!
//! It knows the opcodes that protocols 2 to 5 write for a state dict and the few globals of
//! [`Global`]; anything else is an error. Objects lie flat in one list and refer to each other by
//! index, so that neither nesting nor cycles cost stack, and the number of steps is limited.

use super::globals::{Global, Storage, TensorRef};
use std::collections::HashMap;

/// The most opcodes of one pickle; a tensor of a state dict takes about forty.
const MAX_STEPS: usize = 1 << 22;

/// The most arguments of a call and the most axes of a tensor.
const MAX_ITEMS: usize = 16;

/// The index of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A value on the stack. Strings and bytes borrow from the pickle.
#[derive(Clone, Debug)]
pub(super) enum Object<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float,
    Str(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(TensorRef<'a>),
}

impl Object<'_> {
    /// The kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Object::None => "None",
            Object::Bool(_) => "a bool",
            Object::Int(_) => "an int",
            Object::Float => "a float",
            Object::Str(_) => "a string",
            Object::Bytes => "bytes",
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dict",
            Object::Global(_) => "a global",
            Object::Storage(_) => "a storage",
            Object::Tensor(_) => "a tensor",
        }
    }
}

/// What one pickle holds.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    /// The object that the pickle is.
    pub root: Id,
    /// Bytes up to and including the STOP opcode.
    pub len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the start of `bytes`. The message of an error names the offset.
    pub fn read(bytes: &'a [u8]) -> Result<Pickle<'a>, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        };
        for _ in 0..MAX_STEPS {
            let start = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Pickle {
                        objects: machine.objects,
                        root,
                        len: machine.at,
                    });
                }
                Err(what) => return Err(format!("pickle, byte {start}: {what}")),
            }
        }
        Err(format!("pickle: more than {MAX_STEPS} opcodes"))
    }

    /// The object at `id`.
    pub fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id.0 as usize]
    }

    /// The elements of a list or tuple.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Object::Tuple(items) | Object::List(items) => Some(items),
            _ => None,
        }
    }

    /// The value under a string key of a dict; the last one, as in Python.
    pub fn lookup(&self, dict: Id, key: &str) -> Option<Id> {
        let Object::Dict(entries) = self.get(dict) else {
            return None;
        };
        let found = entries
            .iter()
            .rfind(|(k, _)| matches!(self.get(*k), Object::Str(s) if *s == key));
        found.map(|(_, v)| *v)
    }

    /// Every storage that the pickle refers to.
    pub fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.objects.iter().filter_map(|o| match o {
            Object::Storage(s) => Some(s),
            _ => None,
        })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Elements copied from a list that stays.
    copied: usize,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Executes one opcode; the root object at STOP.
    fn step(&mut self) -> Step<Option<Id>> {
        let op = self.u8()?;
        match op {
            b'.' => return self.pop().map(Some),
            0x80 => match self.u8()? {
                2..=5 => {}
                v => return Err(format!("protocol {v}; supported: 2 to 5")),
            },
            0x95 => {
                self.u64()?;
            }
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' => {
                let v = self.u8()?;
                self.push(Object::Int(v.into()));
            }
            b'M' => {
                let v = u16::from_le_bytes(self.array()?);
                self.push(Object::Int(v.into()));
            }
            b'J' => {
                let v = i32::from_le_bytes(self.array()?);
                self.push(Object::Int(v.into()));
            }
            0x8a => {
                let len = self.u8()?;
                let v = self.long(len.into())?;
                self.push(Object::Int(v));
            }
            0x8b => {
                let len = self.u32()?;
                let v = self.long(len as usize)?;
                self.push(Object::Int(v));
            }
            b'G' => {
                self.take(8)?;
                self.push(Object::Float);
            }
            b'X' | b'T' => {
                let len = self.u32()?;
                self.string(len.into())?;
            }
            0x8c | b'U' => {
                let len = self.u8()?;
                self.string(len.into())?;
            }
            0x8d => {
                let len = self.u64()?;
                self.string(len)?;
            }
            b'C' => {
                let len = self.u8()?;
                self.skip_bytes(len.into())?;
            }
            b'B' => {
                let len = self.u32()?;
                self.skip_bytes(len.into())?;
            }
            0x8e => {
                let len = self.u64()?;
                self.skip_bytes(len)?;
            }
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items));
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Object::List(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                let entries = pairs(&items)?;
                self.push(Object::Dict(entries));
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..=op - 0x85 {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Object::Tuple(items));
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                let entries = pairs(&items)?;
                self.set_items(entries)?;
            }
            b'q' => {
                let slot = self.u8()?;
                self.memoize(slot.into())?;
            }
            b'r' => {
                let slot = self.u32()?;
                self.memoize(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.memoize(slot)?;
            }
            b'h' => {
                let slot = self.u8()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = self.u32()?;
                self.recall(slot)?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let global = Global::named(module, name)?;
                self.push(Object::Global(global));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Object::Str(module), Object::Str(name)) = (self.get(module), self.get(name))
                else {
                    return Err("a global whose name is no string".into());
                };
                let global = Global::named(module, name)?;
                self.push(Object::Global(global));
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(Object::Storage(storage));
            }
            b'R' => {
                let args = self.pop()?;
                let function = self.pop()?;
                let Object::Global(global) = *self.get(function) else {
                    return Err(format!("a call of {}", self.get(function).kind()));
                };
                self.call(global, args)?;
            }
            b'b' => self.build()?,
            other => {
                return Err(format!(
                    "opcode 0x{other:02x} is not one that state dicts use"
                ));
            }
        }
        Ok(None)
    }

    /// The call of a known global: builds the object that it stands for.
    fn call(&mut self, global: Global, args: Id) -> Step<()> {
        let Object::Tuple(args) = self.get(args) else {
            return Err("a call whose arguments are no tuple".into());
        };
        if args.len() > MAX_ITEMS {
            return Err(format!("a call with {} values", args.len()));
        }
        let args = args.clone();
        let result = match (global, args.as_slice()) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::OrderedDict, &[items]) => {
                let mut entries = Vec::new();
                self.copied += self.sequence(items)?.len();
                if self.copied > MAX_STEPS {
                    return Err("copies its lists too many times over".into());
                }
                for &pair in self.sequence(items)? {
                    match self.sequence(pair)? {
                        [key, value] => entries.push((*key, *value)),
                        _ => return Err("an OrderedDict of what are no pairs".into()),
                    }
                }
                Object::Dict(entries)
            }
            (Global::RebuildTensor, &[storage, offset, size, stride, ..]) => {
                let Object::Storage(storage) = *self.get(storage) else {
                    return Err(format!("a tensor over {}", self.get(storage).kind()));
                };
                let shape = self.sizes(size, "size")?;
                let strides = self.sizes(stride, "stride")?;
                if shape.len() != strides.len() {
                    return Err(format!(
                        "a tensor of size {shape:?} with strides {strides:?}"
                    ));
                }
                Object::Tensor(TensorRef {
                    storage,
                    offset: self.size(offset, "offset")?,
                    shape,
                    strides,
                })
            }
            (Global::RebuildParameter, &[data, ..]) => {
                self.stack.push(data);
                return Ok(());
            }
            _ => return Err(format!("a call of {global:?} with {} values", args.len())),
        };
        self.push(result);
        Ok(())
    }

    /// The storage that a persistent id names: `("storage", type, key, location, elements, ...)`.
    fn persistent(&self, id: Id) -> Step<Storage<'a>> {
        let bad = || "a persistent id that names no storage".to_owned();
        let &[tag, kind, key, _location, elements, ref view @ ..] = self.sequence(id)? else {
            return Err(bad());
        };
        let (Object::Str("storage"), &Object::Global(Global::Storage(element)), &Object::Str(key)) =
            (self.get(tag), self.get(kind), self.get(key))
        else {
            return Err(bad());
        };
        if view.iter().any(|&v| !matches!(self.get(v), Object::None)) {
            return Err("a view of a storage, as torch before 0.4 wrote it".into());
        }
        Ok(Storage {
            element,
            key,
            elements: self.size(elements, "storage size")?,
        })
    }

    /// BUILD: the state of an ordered dict (its `_metadata`) is dropped.
    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let target = self.top()?;
        match (self.get(target), self.get(state)) {
            (Object::Dict(_), Object::Dict(_)) => Ok(()),
            (target, state) => Err(format!("{} as state of {}", state.kind(), target.kind())),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Step<()> {
        let list = self.top()?;
        match &mut self.objects[list.0 as usize] {
            Object::List(all) => {
                all.extend(items);
                Ok(())
            }
            other => Err(format!("an append to {}", other.kind())),
        }
    }

    fn set_items(&mut self, items: Vec<(Id, Id)>) -> Step<()> {
        let dict = self.top()?;
        match &mut self.objects[dict.0 as usize] {
            Object::Dict(all) => {
                all.extend(items);
                Ok(())
            }
            other => Err(format!("a key set in {}", other.kind())),
        }
    }

    fn memoize(&mut self, slot: u32) -> Step<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = self
            .memo
            .get(&slot)
            .ok_or_else(|| format!("memo slot {slot} is empty"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id.0 as usize]
    }

    fn sequence(&self, id: Id) -> Step<&[Id]> {
        match self.get(id) {
            Object::Tuple(items) | Object::List(items) => Ok(items),
            other => Err(format!("{} instead of a sequence", other.kind())),
        }
    }

    fn size(&self, id: Id, what: &str) -> Step<usize> {
        match self.get(id) {
            Object::Int(v) => {
                usize::try_from(*v).map_err(|_| format!("{what} {v} is out of range"))
            }
            other => Err(format!("{what} is {}", other.kind())),
        }
    }

    fn sizes(&self, id: Id, what: &str) -> Step<Vec<usize>> {
        let items = self.sequence(id)?;
        if items.len() > MAX_ITEMS {
            return Err(format!("{} axes; at most {MAX_ITEMS}", items.len()));
        }
        items.iter().map(|&i| self.size(i, what)).collect()
    }

    fn push(&mut self, object: Object<'a>) {
        // MAX_STEPS keeps the index within u32.
        self.stack.push(Id(self.objects.len() as u32));
        self.objects.push(object);
    }

    /// The top of the stack above the last mark.
    fn top(&self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        // A mark never lies above the stack: `pop` stops at it.
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let part = rest
            .get(..len)
            .ok_or_else(|| format!("{len} bytes wanted, {} left", rest.len()))?;
        self.at += len;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Step<u8> {
        self.array().map(|[b]| b)
    }

    fn u32(&mut self) -> Step<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Step<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A two's complement integer of at most 16 bytes.
    fn long(&mut self, len: usize) -> Step<i128> {
        if len > 16 {
            return Err(format!("an integer of {len} bytes"));
        }
        let part = self.take(len)?;
        let negative = part.last().is_some_and(|b| b & 0x80 != 0);
        let mut bytes = [if negative { 0xff } else { 0 }; 16];
        bytes[..len].copy_from_slice(part);
        Ok(i128::from_le_bytes(bytes))
    }

    fn sized(&mut self, len: u64) -> Step<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| format!("{len} bytes wanted"))?;
        self.take(len)
    }

    fn string(&mut self, len: u64) -> Step<()> {
        let part = self.sized(len)?;
        let text = std::str::from_utf8(part).map_err(|e| format!("a string: {e}"))?;
        self.push(Object::Str(text));
        Ok(())
    }

    fn skip_bytes(&mut self, len: u64) -> Step<()> {
        self.sized(len)?;
        self.push(Object::Bytes);
        Ok(())
    }

    /// The text up to a newline, which is consumed.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or("an unfinished line")?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|e| format!("a name: {e}"))
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect()),
        _ => Err("a key without a value".into()),
    }
}
