// swift-tools-version:5.9
import PackageDescription

// Made by `targets/build.sh ios`: `import CLacuna` brings the functions of lacuna.h.
let package = Package(
    name: "Lacuna",
    platforms: [.iOS(.v15)],
    products: [.library(name: "CLacuna", targets: ["CLacuna"])],
    targets: [.binaryTarget(name: "CLacuna", path: "CLacuna.xcframework")]
)
