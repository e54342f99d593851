//! Status reports of OPA: the first byte chooses where the rest is cut. What is read is within the
//! limits, and what is read of a beginning is read of the whole.

#![no_main]

use bundlegate::fleet::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else {
        return;
    };
    let whole = Report::parse(body, false);
    let prefix = &body[..body.len() * usize::from(*choice) / 255];
    if let Ok(report) = Report::parse(prefix, true) {
        assert_eq!(whole.as_ref(), Ok(&report));
        assert_eq!(Report::parse(prefix, false).as_ref(), Ok(&report));
    }
    match whole {
        Ok(report) => check(&report),
        Err(error) => assert!(error.to_string().len() <= 512),
    }
});

fn check(report: &Report) {
    let labels = &report.opa.labels;
    let bytes: usize = labels
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    assert!(labels.len() <= 32 && bytes <= 1024);
    assert!(report.bundles.len() <= 1001);
    for bundle in &report.bundles {
        assert!(bundle.name.len() <= 256);
        for text in [&bundle.active_revision, &bundle.http_code] {
            assert!(
                text.as_ref()
                    .is_none_or(|text| (1..=256).contains(&text.len()))
            );
        }
        if let Some(error) = &bundle.error {
            assert!(error.code.len() <= 256 && error.message.len() <= 1024);
        }
    }
}
