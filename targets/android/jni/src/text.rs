//! Text to tokens and back.

use crate::{Result, guard, said};
use jni::JNIEnv;
use jni::objects::{JClass, JIntArray, JString};
use jni::sys::{jboolean, jint, jintArray, jlong, jstring};
use std::ptr::null_mut;

#[cfg(feature = "tokenizer")]
mod tokens {
    use crate::handles::{self, Item};
    use crate::{Result, said};
    use jni::sys::jlong;
    use runtime::Tokenizer;
    use std::sync::Arc;

    pub fn new(model: jlong) -> Result<jlong> {
        let tokenizer = Tokenizer::new(&handles::model(model)?).map_err(said)?;
        Ok(handles::add(Item::Tokenizer(Arc::new(tokenizer))))
    }

    fn get(handle: jlong) -> Result<Arc<Tokenizer>> {
        match handles::get(handle)? {
            Item::Tokenizer(tokenizer) => Ok(tokenizer),
            _ => Err(format!("handle {handle} is no tokenizer")),
        }
    }

    pub fn encode(handle: jlong, text: &str) -> Result<Vec<u32>> {
        get(handle)?.encode(text, true).map_err(said)
    }

    pub fn decode(handle: jlong, tokens: &[u32]) -> Result<String> {
        get(handle)?.decode(tokens).map_err(said)
    }

    pub fn ends(handle: jlong, token: u32) -> Result<bool> {
        Ok(get(handle)?.ends(token))
    }
}

#[cfg(not(feature = "tokenizer"))]
mod tokens {
    use crate::Result;
    use jni::sys::jlong;

    const NONE: &str = "this build of the library has no tokenizers";

    pub fn new(_: jlong) -> Result<jlong> {
        Err(NONE.into())
    }

    pub fn encode(_: jlong, _: &str) -> Result<Vec<u32>> {
        Err(NONE.into())
    }

    pub fn decode(_: jlong, _: &[u32]) -> Result<String> {
        Err(NONE.into())
    }

    pub fn ends(_: jlong, _: u32) -> Result<bool> {
        Err(NONE.into())
    }
}

fn token(id: jint) -> Result<u32> {
    u32::try_from(id).map_err(|_| format!("token {id}"))
}

/// The tokens of an array.
pub fn ids(env: &JNIEnv<'_>, array: &JIntArray<'_>) -> Result<Vec<u32>> {
    let mut ids = vec![0; env.get_array_length(array).map_err(said)? as usize];
    env.get_int_array_region(array, 0, &mut ids).map_err(said)?;
    ids.into_iter().map(token).collect()
}

/// `tokenizer(long model): long`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_tokenizer<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    model: jlong,
) -> jlong {
    guard(&mut env, 0, |_| tokens::new(model))
}

/// `encode(long tokenizer, String text): int[]`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_encode<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    tokenizer: jlong,
    text: JString<'l>,
) -> jintArray {
    guard(&mut env, null_mut(), |env| {
        let text: String = env.get_string(&text).map_err(said)?.into();
        let ids = tokens::encode(tokenizer, &text)?;
        let ids: Vec<jint> = ids.into_iter().map(|id| id as jint).collect();
        let array = env.new_int_array(ids.len() as i32).map_err(said)?;
        env.set_int_array_region(&array, 0, &ids).map_err(said)?;
        Ok(array.into_raw())
    })
}

/// `decode(long tokenizer, int[] tokens): String`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_decode<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    tokenizer: jlong,
    tokens: JIntArray<'l>,
) -> jstring {
    guard(&mut env, null_mut(), |env| {
        let text = self::tokens::decode(tokenizer, &ids(env, &tokens)?)?;
        Ok(env.new_string(text).map_err(said)?.into_raw())
    })
}

/// `ends(long tokenizer, int token): boolean`
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_lacuna_Native_ends<'l>(
    mut env: JNIEnv<'l>,
    _: JClass<'l>,
    tokenizer: jlong,
    id: jint,
) -> jboolean {
    guard(&mut env, 0, |_| {
        Ok(tokens::ends(tokenizer, token(id)?)?.into())
    })
}
