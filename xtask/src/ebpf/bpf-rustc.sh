#!/bin/sh
# RUSTC_WRAPPER of the kernel build; `cargo xtask build-ebpf` sets the variables. Only compilations
# for the BPF target get the private sysroot, unstable features and fixed path names. The names are
# given here and not in RUSTFLAGS, which cargo hashes into the names of symbols.
rustc="$1"
shift
case " $* " in
*" --target bpfel-unknown-none "* | *" --target=bpfel-unknown-none "*)
    RUSTC_BOOTSTRAP=1 exec "$rustc" "$@" \
        --sysroot "$COFFERDAM_BPF_SYSROOT" \
        --remap-path-prefix="$COFFERDAM_BPF_WORKSPACE=/cofferdam-src" \
        --remap-path-prefix="$COFFERDAM_BPF_REGISTRY=/cargo-registry"
    ;;
esac
exec "$rustc" "$@"
