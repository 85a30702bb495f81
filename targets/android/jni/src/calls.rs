//! Models, sessions and decoders.

use crate::handles::{self, Item};
use crate::{Result, guard, said};
use jni::JNIEnv;
use jni::objects::{JClass, JFloatArray, JIntArray, JObject, JObjectArray, JString};
use jni::sys::{jfloatArray, jint, jlong, jlongArray, jobjectArray};
use runtime::{
    DType, Decoder, DecoderOptions, Model, Session, SessionOptions, TensorView, TensorViewMut,
};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

fn threads(n: jint) -> Result<usize> {
    usize::try_from(n).map_err(|_| format!("{n} threads; 0 takes every core"))
}

/// `open(String path): long`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_open<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    path: JString<'l>,
) -> jlong {
    guard(&mut env, 0, |env| {
        let path: String = env.get_string(&path).map_err(said)?.into();
        let model = Model::open(path).map_err(said)?;
        Ok(handles::add(Item::Model(Box::new(model))))
    })
}

/// `openPart(int descriptor, long offset, long length): long`, of an asset that is stored as it is. The descriptor stays
/// the caller's.
#[cfg(unix)]
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_openPart<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    descriptor: jint,
    offset: jlong,
    length: jlong,
) -> jlong {
    guard(&mut env, 0, |_| {
        // Opened anew through its name: whose descriptor it is does not matter then.
        let name = format!("/proc/self/fd/{descriptor}");
        let file = std::fs::File::open(&name).map_err(|e| format!("{name}: {e}"))?;
        let wrong = || format!("{length} bytes from {offset} on: no part of a file");
        let from = u64::try_from(offset).map_err(|_| wrong())?;
        let length = u64::try_from(length).map_err(|_| wrong())?;
        let to = from.checked_add(length).ok_or_else(wrong)?;
        let label = format!("(descriptor {descriptor})");
        let model = runtime::model::file::read_part(label, &file, from..to).map_err(said)?;
        Ok(handles::add(Item::Model(Box::new(model))))
    })
}

/// `close(long handle): void`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_close<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    handle: jlong,
) {
    guard(&mut env, (), |_| {
        handles::close(handle);
        Ok(())
    });
}

/// `session(long model, int threads): long`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_session<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    model: jlong,
    count: jint,
) -> jlong {
    guard(&mut env, 0, |_| {
        let options = SessionOptions {
            threads: threads(count)?,
            ..SessionOptions::default()
        };
        let session = Session::new(&handles::model(model)?, options).map_err(said)?;
        let session = Arc::new(Mutex::new(session));
        Ok(handles::add(Item::Session(session)))
    })
}

fn names<'l>(env: &mut JNIEnv<'l>, list: &[(String, Vec<usize>)]) -> Result<jobjectArray> {
    let array = env.new_object_array(list.len() as i32, "java/lang/String", JObject::null());
    let array = array.map_err(said)?;
    for (i, (name, _)) in list.iter().enumerate() {
        let name = env.new_string(name).map_err(said)?;
        env.set_object_array_element(&array, i as i32, name)
            .map_err(said)?;
    }
    Ok(array.into_raw())
}

fn shape<'l>(
    env: &mut JNIEnv<'l>,
    list: &[(String, Vec<usize>)],
    index: jint,
) -> Result<jlongArray> {
    let found = usize::try_from(index).ok().and_then(|i| list.get(i));
    let (_, dims) = found.ok_or_else(|| format!("there is no tensor {index} of {}", list.len()))?;
    let dims: Vec<jlong> = dims.iter().map(|d| *d as jlong).collect();
    let array = env.new_long_array(dims.len() as i32).map_err(said)?;
    env.set_long_array_region(&array, 0, &dims).map_err(said)?;
    Ok(array.into_raw())
}

macro_rules! described {
    ($names:ident, $shape:ident, $list:ident) => {
        /// Names: `(long session): String[]`
        #[unsafe(no_mangle)]
        pub extern "system" fn $names<'l>(
            mut env: JNIEnv<'l>,
            _: JClass<'l>,
            session: jlong,
        ) -> jobjectArray {
            guard(&mut env, null_mut(), |env| {
                let session = handles::session(session)?;
                let session = handles::enter(&session, "session")?;
                names(env, session.$list())
            })
        }

        /// A shape: `(long session, int index): long[]`
        #[unsafe(no_mangle)]
        pub extern "system" fn $shape<'l>(
            mut env: JNIEnv<'l>,
            _: JClass<'l>,
            session: jlong,
            index: jint,
        ) -> jlongArray {
            guard(&mut env, null_mut(), |env| {
                let session = handles::session(session)?;
                let session = handles::enter(&session, "session")?;
                shape(env, session.$list(), index)
            })
        }
    };
}

described!(
    Java_dev_lacuna_Native_inputNames,
    Java_dev_lacuna_Native_inputShape,
    inputs
);
described!(
    Java_dev_lacuna_Native_outputNames,
    Java_dev_lacuna_Native_outputShape,
    outputs
);

/// `run(long session, float[][] inputs, float[][] outputs): void`, in the order of the names. Inputs of integers are
/// given as floats of whole values.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_run<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    session: jlong,
    inputs: JObjectArray<'l>,
    outputs: JObjectArray<'l>,
) {
    guard(&mut env, (), |env| {
        let session = handles::session(session)?;
        let mut session = handles::enter(&session, "session")?;
        let given = floats(env, &inputs)?;
        let (takes, gives) = (session.inputs().to_vec(), session.outputs().to_vec());
        if given.len() != takes.len() {
            return Err(format!(
                "{} inputs, the model takes {}",
                given.len(),
                takes.len()
            ));
        }
        let dtypes = session.input_dtypes().to_vec();
        let integers: Vec<Vec<i64>> = given
            .iter()
            .zip(&dtypes)
            .map(|(data, dtype)| match dtype {
                DType::I64 => data.iter().map(|v| *v as i64).collect(),
                _ => Vec::new(),
            })
            .collect();
        let views: Vec<TensorView<'_>> = takes
            .iter()
            .enumerate()
            .map(|(i, (_, shape))| match dtypes[i] {
                DType::I64 => TensorView::i64(shape, &integers[i]),
                _ => TensorView::f32(shape, &given[i]),
            })
            .collect();
        let mut results: Vec<Vec<f32>> = gives
            .iter()
            .map(|(_, shape)| vec![0.0; shape.iter().product()])
            .collect();
        let mut targets: Vec<TensorViewMut<'_>> = gives
            .iter()
            .zip(&mut results)
            .map(|((_, shape), data)| TensorViewMut::f32(shape, data))
            .collect();
        session.run_into(&views, &mut targets).map_err(said)?;
        let wanted = env.get_array_length(&outputs).map_err(said)?;
        if wanted as usize != results.len() {
            return Err(format!(
                "{wanted} outputs, the model gives {}",
                results.len()
            ));
        }
        for (i, result) in results.iter().enumerate() {
            let array = env
                .get_object_array_element(&outputs, i as i32)
                .map_err(said)?;
            let array = JFloatArray::from(array);
            let length = match array.is_null() {
                true => 0,
                false => env.get_array_length(&array).map_err(said)?,
            };
            if length as usize != result.len() {
                let name = &gives[i].0;
                return Err(format!(
                    "output `{name}` has {} elements, the array {length}",
                    result.len()
                ));
            }
            env.set_float_array_region(&array, 0, result)
                .map_err(said)?;
        }
        Ok(())
    });
}

/// The arrays of an array.
fn floats(env: &mut JNIEnv<'_>, arrays: &JObjectArray<'_>) -> Result<Vec<Vec<f32>>> {
    let count = env.get_array_length(arrays).map_err(said)?;
    let mut list = Vec::with_capacity(count as usize);
    for i in 0..count {
        let array = env.get_object_array_element(arrays, i).map_err(said)?;
        let array = JFloatArray::from(array);
        if array.is_null() {
            return Err(format!("array {i} is null"));
        }
        let mut data = vec![0.0; env.get_array_length(&array).map_err(said)? as usize];
        env.get_float_array_region(&array, 0, &mut data)
            .map_err(said)?;
        list.push(data);
    }
    Ok(list)
}

/// `decoder(long model, int threads, int capacity): long`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_decoder<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    model: jlong,
    count: jint,
    capacity: jint,
) -> jlong {
    guard(&mut env, 0, |_| {
        let options = DecoderOptions {
            threads: threads(count)?,
            capacity: usize::try_from(capacity).map_err(|_| format!("capacity {capacity}"))?,
            ..DecoderOptions::default()
        };
        let decoder = Decoder::new(&handles::model(model)?, options).map_err(said)?;
        let decoder = Arc::new(Mutex::new(decoder));
        Ok(handles::add(Item::Decoder(decoder)))
    })
}

/// `prefill(long decoder, int[] tokens): float[]`: the logits after the last of them.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_prefill<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    decoder: jlong,
    tokens: JIntArray<'l>,
) -> jfloatArray {
    guard(&mut env, null_mut(), |env| {
        let decoder = handles::decoder(decoder)?;
        let mut decoder = handles::enter(&decoder, "decoder")?;
        let ids = crate::text::ids(env, &tokens)?;
        let logits = decoder.prefill(&ids).map_err(said)?;
        let array = env.new_float_array(logits.len() as i32).map_err(said)?;
        env.set_float_array_region(&array, 0, logits)
            .map_err(said)?;
        Ok(array.into_raw())
    })
}

/// `reset(long decoder): void`: a new sequence.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_reset<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    decoder: jlong,
) {
    guard(&mut env, (), |_| {
        let decoder = handles::decoder(decoder)?;
        handles::enter(&decoder, "decoder")?.reset();
        Ok(())
    });
}
