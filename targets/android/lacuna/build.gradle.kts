plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.lacuna"
    compileSdk = 35
    defaultConfig {
        minSdk = 24
        ndk { abiFilters += "arm64-v8a" }
    }
    // The library that `targets/build.sh android` puts here is taken as it is.
    sourceSets["main"].jniLibs.srcDir("src/main/jniLibs")
}

kotlin { jvmToolchain(17) }
