//! Whether this processor can run this build (`.cargo/config.toml` says what it is made for): a word in time, instead of death by an illegal
//! instruction later. Virtual machines are given plain old processors by some defaults ("kvm64", "qemu64").

/// What the build needs and this processor lacks, as an error that says what to do.
#[cfg(target_arch = "x86_64")]
pub fn check() -> Result<(), String> {
    // Not std's detection: it takes what the build demands for what there is.
    let Some(has) = raw_cpuid::CpuId::new().get_feature_info() else { return Ok(()) };
    told(&[
        ("SSSE3", cfg!(target_feature = "ssse3"), has.has_ssse3()),
        ("SSE4.1", cfg!(target_feature = "sse4.1"), has.has_sse41()),
        ("SSE4.2", cfg!(target_feature = "sse4.2"), has.has_sse42()),
        ("POPCNT", cfg!(target_feature = "popcnt"), has.has_popcnt()),
        ("CMPXCHG16B", cfg!(target_feature = "cmpxchg16b"), has.has_cmpxchg16b()),
        ("PCLMULQDQ", cfg!(target_feature = "pclmulqdq"), has.has_pclmulqdq()),
    ])
}

/// Elsewhere the build demands nothing beyond the architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn check() -> Result<(), String> {
    Ok(())
}

/// Of each feature: its name, whether the build needs it, whether it is there.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
fn told(features: &[(&str, bool, bool)]) -> Result<(), String> {
    let lacks: Vec<&str> =
        features.iter().filter(|(_, needed, there)| *needed && !there).map(|(name, ..)| *name).collect();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this processor lacks {}, which this build needs. In a virtual machine choose another processor model (`host`, or x86-64-v2 and \
         newer); else build from the sources without the rustflags in .cargo/config.toml, which is slower",
        lacks.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_and_what_is_not_needed_is_not() {
        assert_eq!(told(&[("SSE4.2", true, true), ("AVX", false, false)]), Ok(()));
        let error =
            told(&[("SSE4.2", true, false), ("AVX", false, false), ("POPCNT", true, false)]).expect_err("lacking");
        assert!(error.starts_with("this processor lacks SSE4.2, POPCNT, which"), "{error}");
    }

    #[test]
    fn the_processor_that_runs_the_tests_will_do() {
        assert_eq!(check(), Ok(()));
    }
}
