//! Attention: its place in the session's cache, and its report.

use super::rows::token_extent;
use super::{Context, Lowered};
use crate::Result;
use crate::kernels::cpu::attention::{Attention, CacheRegion};
use crate::kernels::cpu::{Extent, Kernel};
use crate::model::Op;

pub(super) fn attention(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let Op::Attention {
        heads,
        kv_heads,
        causal,
        cache,
        scale,
    } = unit.node.op
    else {
        return Err(context.refuse("is no attention"));
    };
    let (q, v) = (context.input_shape(0)?, context.input_shape(2)?);
    let (size, value_size) = (q[2] / heads, v[2] / kv_heads);
    let masked = unit.inputs.get(3).is_some_and(|m| !m.is_empty());
    let mut tokens = Extent {
        len: q[1],
        per_token: usize::from(context.tokens.elements(&unit.inputs[0], &q) > 0),
    };
    let mut region = None;
    if let (true, Some(capacity)) = (cache, context.options.capacity) {
        if masked {
            return Err(context.refuse("a mask, where keys and values are kept"));
        }
        tokens = token_extent(context, &q)?;
        let end = CacheRegion::elements(kv_heads, capacity, size, value_size)
            .and_then(|n| n.checked_add(lowered.cache_len))
            .filter(|&n| n <= isize::MAX as usize / 4)
            .ok_or_else(|| context.refuse(format!("no room for {capacity} positions")))?;
        region = Some(CacheRegion {
            offset: lowered.cache_len,
            capacity,
        });
        lowered.cache_len = end;
    }
    let group = match heads / kv_heads {
        1 => "mha".to_owned(),
        n => format!("gqa{n}"),
    };
    let form = match (region, causal) {
        (Some(_), _) => "_kept",
        (None, true) => "_causal",
        (None, false) => "",
    };
    let name = format!("f32_attention{form}_{group}_d{size}_{}", context.isa());
    let reason = match region {
        Some(r) => format!("keeps {} positions", r.capacity),
        None => "over the run's own tokens".into(),
    };
    let kernel = Kernel::Attention(Attention {
        batch: q[0],
        tokens,
        heads,
        kv_heads,
        size,
        value_size,
        causal,
        masked,
        scale: scale.unwrap_or((1.0 / (size as f64).sqrt()) as f32),
        cache: region,
    });
    lowered.push(context, kernel, 4, name, &reason)?;
    if let Some(info) = lowered.infos.last_mut() {
        // Of a run at the start of a sequence.
        let pairs = if causal {
            q[1] * (q[1] + 1) / 2
        } else {
            q[1] * q[1]
        };
        info.macs = (q[0] * heads * pairs * (size + value_size)) as u64;
        info.dense_macs = info.macs;
    }
    Ok(())
}
