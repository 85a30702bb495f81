//! Opens a model of any supported format and saves it as a Lacuna file, and its tokenizer beside
//! it where a third name is given:
//! `cargo run -p lacuna-convert --example convert -- MODEL OUT.safetensors [TOKENIZER.json]`

use lacuna_convert::Options;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, rest @ ..] = args.as_slice() else {
        return Err("MODEL OUT.safetensors [TOKENIZER.json]".into());
    };
    let model = lacuna_convert::open(model, &Options::default())?;
    model.save(out)?;
    if let ([path, ..], Some(tokenizer)) = (rest, &model.tokenizer) {
        std::fs::write(path, &tokenizer[..])?;
    }
    Ok(())
}
