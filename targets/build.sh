#!/usr/bin/env bash
# Builds what an app for one kind of device links, into target/packages/NAME.
#
#     targets/build.sh server|jetson|raspberry-pi|android|ios [flags of cargo]
#     targets/build.sh check               type-checks the libraries for Windows, macOS, iOS and Android
#
# server, jetson and raspberry-pi need cargo-zigbuild (pip install ziglang cargo-zigbuild), which pins the glibc that is
# linked against; android the NDK (ANDROID_NDK_HOME); ios Xcode on a Mac. A rustup installs std for the targets by
# `rustup target add`; where std is built, CROSS_BUILD_STD has the flags of cargo for it.
set -euo pipefail
(($#)) || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
out=$root/target/packages/$name
built=${CARGO_TARGET_DIR:-$root/target}
# shellcheck disable=SC2206
std=(${CROSS_BUILD_STD:-})

need() { command -v "$1" >/dev/null || { echo "missing: $1 ($2)" >&2; exit 1; }; }

# The newest glibc that a program or library asks for, which must not be newer than the second argument.
floor() {
  local newest
  newest=$(readelf --dyn-syms --wide "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
  echo "$(basename "$1"): $newest, at most GLIBC_$2; $(stat -L -c %s "$1") bytes"
  [[ $(printf '%s\n' "$newest" "GLIBC_$2" | sort -V | tail -n 1) == "GLIBC_$2" ]]
}

linux() { # target, glibc, flags for the library
  local target=$1 glibc=$2
  shift 2
  need cargo-zigbuild "pip install ziglang cargo-zigbuild"
  # A linker that the environment names would be taken, and its glibc.
  local linker=CARGO_TARGET_${target//-/_}_LINKER
  unset "${linker^^}"
  # One after the other: together they would share features, and the library need not have those of the program.
  cargo zigbuild --profile small --target "$target.$glibc" "${std[@]}" -p lacuna-bench
  CARGO_BUILD=zigbuild targets/c/install.sh "$out" --target "$target.$glibc" "${std[@]}" "$@"
  install -d "$out/bin"
  install -m 755 "$built/$target/small/lacuna-bench" "$out/bin/"
  floor "$out/lib/liblacuna.so" "$glibc"
  floor "$out/bin/lacuna-bench" "$glibc"
}

case $name in
  server) linux x86_64-unknown-linux-gnu 2.28 "$@" ;;
  # One build serves both: instruction sets are found at run time.
  jetson | raspberry-pi) linux aarch64-unknown-linux-gnu 2.31 --no-default-features --features tokenizer "$@" ;;
  android)
    ndk=${ANDROID_NDK_HOME:?names the folder of the NDK, 26 or newer}
    clang=$(ls "$ndk"/toolchains/llvm/prebuilt/*/bin/aarch64-linux-android24-clang)
    export CARGO_TARGET_AARCH64_LINUX_ANDROID_LINKER=$clang
    # Pages of 16 KiB, which Android 15 has on some devices.
    export CARGO_TARGET_AARCH64_LINUX_ANDROID_RUSTFLAGS="-C link-arg=-Wl,-z,max-page-size=16384"
    cargo build --profile small --target aarch64-linux-android "${std[@]}" -p lacuna-jni "$@"
    into=$root/targets/android/lacuna/src/main/jniLibs/arm64-v8a
    install -d "$into"
    install -m 755 "$built/aarch64-linux-android/small/liblacuna_jni.so" "$into/"
    echo "installed in $into; targets/android builds the module: gradle :lacuna:assembleRelease"
    ;;
  ios)
    need xcodebuild "Xcode, on a Mac"
    slices=()
    for target in aarch64-apple-ios aarch64-apple-ios-sim; do
      cargo build --profile small --target "$target" "${std[@]}" -p lacuna-c "$@"
      headers=$built/$target/small/headers
      install -d "$headers"
      cp targets/c/include/lacuna.h targets/ios/module.modulemap "$headers/"
      slices+=(-library "$built/$target/small/liblacuna.a" -headers "$headers")
    done
    rm -rf targets/ios/CLacuna.xcframework
    xcodebuild -create-xcframework "${slices[@]}" -output targets/ios/CLacuna.xcframework
    ;;
  check)
    for target in x86_64-pc-windows-msvc aarch64-apple-darwin aarch64-apple-ios aarch64-linux-android; do
      packages=(-p lacuna -p lacuna-c)
      [[ $target != aarch64-linux-android ]] || packages+=(-p lacuna-jni)
      [[ $target == *ios* || $target == *android ]] || packages+=(-p lacuna-bench -p lacuna-prune)
      cargo check --target "$target" "${std[@]}" "${packages[@]}" --no-default-features "$@"
      echo "$target: checked ${packages[*]}"
    done
    ;;
  *)
    echo "$name: no such target" >&2
    exit 2
    ;;
esac
