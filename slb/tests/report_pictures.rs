//! The page of `slb replay --report html`, drawn by a browser: light, dark, on a narrow screen, and with drops.
//!
//! Each drawing is reduced to the mean colours of small squares, and compared with the picture that is kept for it. Where
//! the page was changed on purpose, `SLB_NEW_PICTURES=1 cargo test -p slb --test all report_pictures` keeps the new ones.
//! No root; without the browser or the font, the test says so and is skipped.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The only font that the browser gets, so that machines with others draw the same.
const FONTS: &str = "/usr/share/fonts/truetype/dejavu";
/// The width and height of the squares, in pixels.
const SQUARE: usize = 4;
/// Colour values of a square that differ by less are equal: versions of a browser smooth edges differently.
const TOLERANCE: u8 = 40;
/// One square in so many may differ.
const MAY_DIFFER: usize = 200;

struct Picture {
    width: usize,
    height: usize,
    /// Rows from the top, with red, green and blue for each place.
    colours: Vec<u8>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut colours = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut colours).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb, "{}", path.display());
        assert_eq!(info.bit_depth, png::BitDepth::Eight, "{}", path.display());
        Self {
            width: info.width as usize,
            height: info.height as usize,
            colours,
        }
    }

    fn write(&self, path: &Path) {
        let file = fs::File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&self.colours).unwrap();
    }

    /// Returns the picture of the squares' mean colours.
    fn reduced(&self) -> Self {
        let (width, height) = (self.width / SQUARE, self.height / SQUARE);
        let mut colours = Vec::with_capacity(3 * width * height);
        for place in 0..3 * width * height {
            let (x, y, colour) = (place / 3 % width, place / 3 / width, place % 3);
            let pixels = (0..SQUARE * SQUARE).map(|pixel| {
                let (x, y) = (SQUARE * x + pixel % SQUARE, SQUARE * y + pixel / SQUARE);
                usize::from(self.colours[3 * (y * self.width + x) + colour])
            });
            colours.push((pixels.sum::<usize>() / (SQUARE * SQUARE)) as u8);
        }
        Self {
            width,
            height,
            colours,
        }
    }

    /// Returns how many places differ from those of another picture of this size.
    fn differences(&self, other: &Self) -> usize {
        let places = self.colours.chunks(3).zip(other.colours.chunks(3));
        let is_another = |(one, other): &(&[u8], &[u8])| {
            one.iter()
                .zip(*other)
                .any(|(one, other)| one.abs_diff(*other) > TOLERANCE)
        };
        places.filter(is_another).count()
    }

    fn brightness(&self) -> usize {
        let sum: usize = self.colours.iter().map(|&colour| usize::from(colour)).sum();
        sum / self.colours.len()
    }
}

fn browser() -> Option<&'static str> {
    let known = ["chromium-headless-shell", "chromium", "google-chrome"];
    known.into_iter().find(|name| common::has(name))
}

/// A page, and how the browser is to show it.
struct Drawing {
    name: &'static str,
    page: PathBuf,
    width: usize,
    height: usize,
    is_dark: bool,
}

impl Drawing {
    fn draw(&self, browser: &str, folder: &Path) -> Picture {
        let fonts = folder.join("fonts.conf");
        // Whatever family is asked for.
        let edit = "<edit name=\"family\" mode=\"append\"><string>DejaVu Sans</string></edit>";
        let text = format!(
            "<fontconfig><dir>{FONTS}</dir><match target=\"pattern\">{edit}</match></fontconfig>"
        );
        fs::write(&fonts, text).unwrap();
        let picture = folder.join(format!("{}.png", self.name));
        let scheme = if self.is_dark { 0 } else { 1 };
        let output = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .arg("--force-device-scale-factor=1")
            .arg(format!(
                "--user-data-dir={}",
                folder.join("profile").display()
            ))
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg(format!("--window-size={},{}", self.width, self.height))
            .arg(format!("--screenshot={}", picture.display()))
            .arg(format!("file://{}", self.page.display()))
            .env("FONTCONFIG_FILE", &fonts)
            .output()
            .unwrap();
        assert!(picture.is_file(), "{browser}: {output:?}");
        Picture::read(&picture)
    }
}

/// Writes the page of a capture, which lies in `folder` or is an example's.
fn page(folder: &Path, capture: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let examples = root.join("examples");
    let config = examples.join("web.toml").display().to_string();
    let inside = |folder: &Path| folder.join(capture).is_file().then(|| folder.to_owned());
    let at = inside(folder).or_else(|| inside(&examples)).unwrap();
    let page = folder.join(format!("{capture}.html"));
    let output = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(["replay", &config, "--in", capture, "--report", "html"])
        .current_dir(at)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::write(&page, output.stdout).unwrap();
    page
}

#[test]
fn the_page_looks_as_it_did() {
    let Some(browser) = browser() else {
        skip!("no browser that draws without a screen: chromium-headless-shell is not installed");
    };
    if !Path::new(FONTS).is_dir() {
        skip!("{FONTS} is missing (fonts-dejavu-core)");
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refused = folder.join("refused.pcap").display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(["generate", "--out", &refused, "--sessions", "20"])
        .args(["--tcp", "20.20.20.100:80", "--udp", "20.20.20.100:81"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (sample, refused) = (page(folder, "sample.pcap"), page(folder, "refused.pcap"));
    let drawing = |name, page: &Path, width, is_dark| Drawing {
        name,
        page: page.to_owned(),
        width,
        height: 2400,
        is_dark,
    };
    let drawings = [
        drawing("light", &sample, 1000, false),
        drawing("dark", &sample, 1000, true),
        drawing("narrow", &sample, 400, false),
        drawing("refused", &refused, 1000, false),
    ];
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report_pictures");
    for drawing in drawings {
        let drawn = drawing.draw(browser, folder).reduced();
        // Whatever is kept, a dark page is dark, and a light one light.
        let brightness = drawn.brightness();
        assert!(
            if drawing.is_dark {
                brightness < 50
            } else {
                brightness > 220
            },
            "{}: {brightness}",
            drawing.name
        );
        let path = kept.join(format!("{}.png", drawing.name));
        if std::env::var_os("SLB_NEW_PICTURES").is_some() {
            fs::create_dir_all(&kept).unwrap();
            drawn.write(&path);
            continue;
        }
        let kept = Picture::read(&path);
        assert_eq!((drawn.width, drawn.height), (kept.width, kept.height));
        let differ = drawn.differences(&kept);
        if differ * MAY_DIFFER > kept.width * kept.height {
            let other = std::env::temp_dir().join(format!("slb-report-{}.png", drawing.name));
            drawn.write(&other);
            panic!(
                "{differ} of {} squares differ: {} was kept, {} is drawn now",
                kept.width * kept.height,
                path.display(),
                other.display()
            );
        }
    }
}
