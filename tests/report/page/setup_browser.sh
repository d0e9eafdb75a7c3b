#!/usr/bin/env bash
# Puts Playwright, and a Chromium without a window out of npm's registry, into a folder.
#   bash tests/report/page/setup_browser.sh .browser
set -euo pipefail

CHROMIUM=@sparticuz/chromium@147.0.0
mkdir -p "$1"
cd "$1"
[ -d python/playwright ] ||
    "${PYTHON:-python3}" -m pip install --quiet --target python playwright
if [ ! -x chromium ]; then
    archive=$(npm pack --silent "$CHROMIUM")
    tar -xzf "$archive"
    node -e '
        const fs = require("fs"), zlib = require("zlib");
        const unpack = (name, to) => fs.writeFileSync(
            to, zlib.brotliDecompressSync(fs.readFileSync(`package/bin/${name}.br`)));
        unpack("al2023.tar", "libraries.tar");
        unpack("swiftshader.tar", "graphics.tar");
        unpack("chromium", "chromium.part");'
    # What it is linked with, and a machine without windows may lack; and what draws.
    tar -xf libraries.tar
    tar -xf graphics.tar
    chmod +x chromium.part
    rm -rf package "$archive" libraries.tar graphics.tar
    mv chromium.part chromium
fi
