//! Proves that the checked-in code is what the `.proto` files say.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use prost::Message as _;

const FILES: [&str; 3] = [
    "cofferdam/v1/common.proto",
    "cofferdam/v1/agent.proto",
    "cofferdam/v1/operator.proto",
];

#[test]
fn generated_code_is_fresh() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = root.join("src/generated");
    let fresh = tempfile::tempdir()?;

    let descriptors = protox::compile(FILES, [root.join("proto")])?;
    let mut for_reflection = descriptors.clone();
    for file in &mut for_reflection.file {
        // Comments and positions are for the generator; reflection does not serve them.
        file.source_code_info = None;
    }
    fs::write(
        fresh.path().join("descriptor_set.bin"),
        for_reflection.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .out_dir(fresh.path())
        .compile_fds(descriptors)?;

    for name in ["cofferdam.v1.rs", "descriptor_set.bin"] {
        let new = fs::read(fresh.path().join(name))?;
        let path = checked_in.join(name);
        if env::var_os("COFFERDAM_CODEGEN").is_some_and(|value| value == "write") {
            fs::create_dir_all(&checked_in)?;
            fs::write(&path, new)?;
            continue;
        }
        assert!(
            fs::read(&path).is_ok_and(|old| old == new),
            "{} is stale: run `COFFERDAM_CODEGEN=write cargo test -p proto`",
            path.display()
        );
    }
    Ok(())
}
