"""Files of ECG devices made for tests, from the formats' public descriptions and with no reader's code involved.

EDF: Kemp et al. 1992, edfplus.info. aECG: HL7 V3 R1-2004. MUSE XML: GE's restecg.dtd. Sierra: Philips' published
schema, its XLI compression as the open sierra-ecg-tools describe it. Mortara: the attributes that BRAVEHEART and
EDFbrowser read. SCP-ECG: EN 1064. Names in them are made up.
"""

import base64
import binascii
import struct

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
NAME = "Zweistein"  # of the patient; it must turn up nowhere


def samples(leads=12, count=500, seed=0, limit=3000):
    """(leads, count) of int16 that vary as an ECG might: small steps, both signs."""
    steps = np.random.default_rng(seed).integers(-40, 41, (leads, count))
    return np.clip(np.cumsum(steps, axis=1), -limit, limit).astype(np.int16)


def edf(x, labels=LEADS, rate=250, unit="uV", physical=(-3276.8, 3276.7), digital=(-32768, 32767), seconds=1, **change):
    """An EDF+C file, a data record a second, with an annotation signal that says something about the patient."""
    ns, per_record = len(x) + 1, round(rate * seconds)
    count = x.shape[1] // per_record
    fixed = {
        "version": ("0", 8), "patient": (f"MCH-1 F 02-MAY-1951 {NAME}", 80),
        "recording": (f"Startdate 05-MAR-2019 X {NAME} X", 80), "date": ("05.03.19", 8), "time": ("10.20.30", 8),
        "header": (256 * (ns + 1), 8), "reserved": ("EDF+C", 44), "records": (count, 8), "seconds": (seconds, 8),
        "signals": (ns, 4),
    }  # fmt: skip
    fields = [
        ([*labels, "EDF Annotations"], 16), ([""] * ns, 80), ([unit] * len(x) + [""], 8),
        ([physical[0]] * len(x) + [-1], 8), ([physical[1]] * len(x) + [1], 8),
        ([digital[0]] * len(x) + [-32768], 8), ([digital[1]] * len(x) + [32767], 8), ([""] * ns, 80),
        ([per_record] * len(x) + [20], 8), ([""] * ns, 32),
    ]  # fmt: skip
    header = "".join(str(change.get(key, value)).ljust(width)[:width] for key, (value, width) in fixed.items())
    header += "".join(str(value).ljust(width)[:width] for values, width in fields for value in values)
    body = b""
    for i in range(count):
        body += x[:, i * per_record : (i + 1) * per_record].astype("<i2").tobytes()
        body += f"+{i * seconds:g}\x14\x14+{i}\x14{NAME}\x14\0".encode().ljust(40, b"\0")[:40]
    return header.encode("ascii") + body


def aecg(x, leads=LEADS, step="0.002 s", scale="2.5 uV", origin="0 uV"):
    sequences = "".join(
        f'<component><sequence><code code="MDC_ECG_LEAD_{name}"/><value xsi:type="SLIST_PQ">{_pq("origin", origin)}'
        f"{_pq('scale', scale)}<digits>{' '.join(map(str, row))}</digits></value></sequence></component>"
        for name, row in zip(leads, x, strict=True)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<id root="1.2.3"/><effectiveTime><low value="20190305102030.000"/></effectiveTime>
<componentOf><timepointEvent><componentOf><subjectAssignment><subject><trialSubject><id extension="77"/>
<subjectDemographicPerson><name>{NAME}</name><administrativeGenderCode code="F"/><birthTime value="19510502"/>
</subjectDemographicPerson></trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>
<component><series><code code="RHYTHM"/><effectiveTime><low value="20190305102030.000"/></effectiveTime>
<component><sequenceSet><component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS">
<head value="20190305102030.000"/>{_pq("increment", step)}</value></sequence></component>{sequences}
</sequenceSet></component></series></component></AnnotatedECG>""".encode()


def _pq(tag, text):
    value, unit = text.split()
    return f'<{tag} value="{value}" unit="{unit}"/>'


EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def muse(x, leads=EIGHT, scale="4.88", unit="MICROVOLTS", base=500, doctype=""):
    data = ""
    for name, row in zip(leads, x, strict=True):
        content = row.astype("<i2").tobytes()
        data += (
            f"<LeadData><LeadByteCountTotal>{len(content)}</LeadByteCountTotal><LeadTimeOffset>0</LeadTimeOffset>"
            f"<LeadSampleCountTotal>{len(row)}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>{scale}</LeadAmplitudeUnitsPerBit>"
            f"<LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits><LeadID>{name}</LeadID>"
            f"<FirstSampleBaseline>0</FirstSampleBaseline><LeadSampleSize>2</LeadSampleSize>"
            f"<LeadDataCRC32>{binascii.crc32(content)}</LeadDataCRC32>"
            f"<WaveFormData>\n{base64.encodebytes(content).decode()}</WaveFormData></LeadData>"
        )
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
{doctype or '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'}
<RestingECG><MuseInfo><MuseVersion>9.0</MuseVersion></MuseInfo>
<PatientDemographics><PatientID>77</PatientID><PatientAge>67</PatientAge><AgeUnits>YEARS</AgeUnits>
<DateofBirth>05-02-1951</DateofBirth><Gender>FEMALE</Gender><PatientLastName>{NAME}</PatientLastName>
</PatientDemographics><TestDemographics><AcquisitionTime>10:20:30</AcquisitionTime>
<AcquisitionDate>03-05-2019</AcquisitionDate></TestDemographics>
<Diagnosis><DiagnosisStatement><StmtText>{NAME} is well</StmtText></DiagnosisStatement></Diagnosis>
<Waveform><WaveformType>Rhythm</WaveformType><SampleBase>{base}</SampleBase><SampleExponent>0</SampleExponent>
{data}</Waveform></RestingECG>""".encode("latin-1")


def sierra(x, rate=500, resolution=5, xli=False, **attributes):
    content = b"".join(map(_xli_chunk, _limb_residuals(x))) if xli else x.astype("<i2").tobytes()
    given = {
        "dataencoding": "Base64", "compression": "XLI" if xli else "Uncompressed", "numberofleads": len(x),
        "leadlabels": " ".join(LEADS[: len(x)]), "durationperchannel": round(x.shape[1] * 1000 / rate),
    } | attributes  # fmt: skip
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo><documentname>{NAME}</documentname>
<documenttype>SierraECG</documenttype><documentversion>1.04</documentversion></documentinfo>
<patient><generalpatientdata><patientid>77</patientid><name><lastname>{NAME}</lastname></name>
<age><dateofbirth>1951-05-02</dateofbirth><years>67</years></age><sex>Female</sex></generalpatientdata></patient>
<dataacquisition date="2019-03-05" time="10:20:30"><signalcharacteristics><samplingrate>{rate}</samplingrate>
<resolution>{resolution}</resolution><signaloffset>0</signaloffset><signalsigned>True</signalsigned>
<numberchannelsvalid>12</numberchannelsvalid><numberchannelsallocated>12</numberchannelsallocated>
</signalcharacteristics></dataacquisition>
<waveforms><parsedwaveforms {" ".join(f'{key}="{value}"' for key, value in given.items())}>
{base64.b64encode(content).decode()}</parsedwaveforms></waveforms></restingecgdata>""".encode()


def _limb_residuals(x):
    one, two, three, r, l, f = x[:6].astype(int)  # noqa: E741
    residuals = [two - one - three, -r - (one + two) // 2, (one - three) // 2 - l, (two + three) // 2 - f]
    return [one, two, *residuals, *x[6:].astype(int)]


def _xli_chunk(row):
    """Second differences as words, all high bytes before all low bytes, in LZW codes of 10 bits, single bytes only."""
    bent = 2 * row[1:-1] - row[:-2] - row[2:]
    words = np.concatenate([row[:2], bent[1:] + 64, [64]]).astype(np.int16).view(np.uint16)
    content = np.concatenate([words >> 8, words & 0xFF])
    bits = "".join(f"{byte:010b}" for byte in content)
    bits += "0" * (-len(bits) % 8) if len(bits) % 10 == 0 else ""
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return struct.pack("<ihh", len(packed), 0, int(bent[0])) + packed


SCP_LEADS = {"I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8} | {
    "III": 61, "aVR": 62, "aVL": 63, "aVF": 64
}  # fmt: skip


def scp(x, leads=LEADS, nanovolts=2500, interval=2000, differences=0, huffman=False, end=None, reference=None, flags=0):
    """SCP-ECG 1.3: sections 0 (pointers), 1 (patient), 3 (leads) and 6 (rhythm), with CRCs throughout."""
    sections = {1: _scp_tags()}
    if huffman:
        sections[2] = struct.pack("<H", 19999)
    count = x.shape[1] if end is None else end
    sections[3] = bytes([len(x), 4 | len(x) << 3 | flags]) + b"".join(
        struct.pack("<IIB", 1, count, SCP_LEADS[name]) for name in leads
    )
    if reference is not None:
        sections[4] = struct.pack("<HHH", reference, 1, 0)
        sections[5] = struct.pack("<HHBB", nanovolts, interval, 0, 0) + bytes(2 * len(x))
    data = []
    for row in x.astype(int):
        coded = row if differences == 0 else np.concatenate([row[:differences], np.diff(row, differences)])
        data.append(_huffman(coded) if huffman else coded.astype("<i2").tobytes())
    lengths = struct.pack(f"<{len(x)}H", *map(len, data))
    sections[6] = struct.pack("<HHBB", nanovolts, interval, differences, 0) + lengths + b"".join(data)
    length_0 = 16 + 10 * 12
    at, table, body = 7 + length_0, struct.pack("<HII", 0, length_0, 7), b""
    for number in range(1, 12):
        content = sections.get(number)
        if content is None:
            table += struct.pack("<HII", number, 0, 0)
            continue
        section = _scp_section(number, content + b"\0" * (len(content) % 2))
        table += struct.pack("<HII", number, len(section), at)
        at, body = at + len(section), body + section
    body = _scp_section(0, table) + body
    record = struct.pack("<I", 6 + len(body)) + body
    return struct.pack("<H", binascii.crc_hqx(record, 0xFFFF)) + record


def _scp_section(number, content):
    reserved = b"SCPECG" if number == 0 else bytes(6)
    section = struct.pack("<HIBB", number, 16 + len(content), 13, 13) + reserved + content
    return struct.pack("<H", binascii.crc_hqx(section, 0xFFFF)) + section


def _scp_tags():
    tags = {
        0: NAME.encode() + b"\0", 2: b"77\0", 4: struct.pack("<HB", 67, 1), 5: struct.pack("<HBB", 1951, 5, 2),
        8: b"\2", 14: bytes(14) + b"\x0d\xa0\0\xd0\0" + bytes(36), 25: struct.pack("<HBB", 2019, 3, 5),
        26: bytes([10, 20, 30]), 30: f"{NAME} is well\0".encode(),
    }  # fmt: skip
    return b"".join(struct.pack("<BH", tag, len(value)) + value for tag, value in tags.items()) + b"\xff\0\0"


def _huffman(values):
    """The default table of EN 1064: 0, 100 + sign to 1111111100 + sign for 1 to 8, and two escapes."""
    bits = ""
    for value in map(int, values):
        if value == 0:
            bits += "0"
        elif abs(value) <= 8:
            bits += "1" * abs(value) + "0" + ("0" if value > 0 else "1")
        elif -128 <= value < 128:
            bits += f"1111111110{value & 0xFF:08b}"
        else:
            bits += f"1111111111{value & 0xFFFF:016b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def ishne(x, rate=500, nanovolts=2500, codes=range(5, 17)):
    """ISHNE Holter 1.0: mark, checksum, header of 512 bytes, samples of all leads in turn."""
    header = bytearray(512)
    struct.pack_into("<4ih", header, 0, 0, x.shape[1], 522, 522, 1)
    header[18 : 18 + len(NAME)] = NAME.encode()
    struct.pack_into("<h", header, 118, 2)
    struct.pack_into("<3h", header, 128, 5, 3, 2019)
    struct.pack_into("<3h", header, 140, 10, 20, 30)
    codes = list(codes)
    unused = [-9] * (12 - len(codes))
    struct.pack_into("<37h", header, 146, len(codes), *codes, *unused, *[1] * 12, *[nanovolts] * len(codes), *unused)
    struct.pack_into("<h", header, 262, rate)
    return (
        b"ISHNE1.0" + struct.pack("<H", binascii.crc_hqx(bytes(header), 0xFFFF)) + header + x.T.astype("<i2").tobytes()
    )


def cardiosoft(x, leads=LEADS):
    rows = "".join(
        f'<WaveformData lead="{name}">{",".join(map(str, row))}</WaveformData>'
        for name, row in zip(leads, x, strict=True)
    )
    return (
        f"<CardiologyXML><MedianData><WaveformData lead='I'>1,2,3</WaveformData></MedianData><StripData>"
        f"<NumberOfLeads>{len(x)}</NumberOfLeads><SampleRate units='Hz'>500</SampleRate><ChannelSampleCountTotal>"
        f"{x.shape[1]}</ChannelSampleCountTotal><Resolution units='uVperLsb'>5</Resolution>{rows}</StripData>"
        f"</CardiologyXML>"
    ).encode()


def schiller(x, leads=LEADS):
    root = "com.xiriuz.sema.xml.schillerEDI.SchillerEDI"
    return f"<{root}>{_wave('ECG_AVERAGES', x[:, :9], leads)}{_wave('ECG_RHYTHMS', x, leads)}</{root}>".encode()


def _wave(kind, x, leads):
    channels = "".join(
        f"<channel><name>{name}</name><data>{','.join(map(str, row))}</data><datastype>COMMASEPARATE</datastype>"
        f"<samplecount>{len(row)}</samplecount></channel>"
        for name, row in zip(leads, x, strict=True)
    )
    return (
        f"<wavedata><type>{kind}</type><resolution><samplerate><exponent>1</exponent><value>500</value></samplerate>"
        f"<yres><unitperbit>1.0</unitperbit><units>UV</units></yres></resolution>{channels}</wavedata>"
    )


# Writer, leads, microvolts of a step, Hz
def mortara(x, leads=LEADS, units_per_mv=400, rate=500, **change):
    """Mortara ELI XML: a CHANNEL a lead, samples in base64 in its attribute DATA; median beats before."""

    def channel(tag, name, row):
        fixed = {"OFFSET": 0, "BITS": 16, "FORMAT": "SIGNED", "UNITS_PER_MV": units_per_mv, "DURATION": len(row)}
        fixed |= {"SAMPLE_FREQ": rate, "NAME": name, "ENCODING": "BASE64", **change}
        fixed["DATA"] = base64.b64encode(row.astype("<i2").tobytes()).decode()
        attributes = " ".join(f'{key}="{value}"' for key, value in fixed.items())
        return f"<{tag} {attributes}/>"

    rows = list(zip(leads, x, strict=True))
    beats = "".join(channel("TYPICAL_CYCLE_CHANNEL", name, row[:9]) for name, row in rows)
    cycle = f'<TYPICAL_CYCLE BITS="16" FORMAT="SIGNED" UNITS_PER_MV="400" SAMPLE_FREQ="500" ENCODING="BASE64">{beats}'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ECG ACQUISITION_TIME="20190305102030" AGE="67" AGE_UNITS="Y">'
        f'<SUBJECT LAST_NAME="{NAME}" GENDER="Female" DOB="19510502"/><SOURCE MODEL="ELI250c" TYPE="STD-12"/>'
        f"{cycle}</TYPICAL_CYCLE>{''.join(channel('CHANNEL', name, row) for name, row in rows)}</ECG>"
    ).encode()


DEVICES = {
    "edf": (edf, LEADS, 0.1, 250.0),
    "aecg": (aecg, LEADS, 2.5, 500.0),
    "muse": (muse, EIGHT, 4.88, 500.0),
    "sierra": (sierra, LEADS, 5.0, 500.0),
    "xli": (lambda x, **k: sierra(x, xli=True, **k), LEADS, 5.0, 500.0),
    "mortara": (mortara, LEADS, 2.5, 500.0),
    "scp": (scp, LEADS, 2.5, 500.0),
    **{
        f"scp{bits}{n}": (lambda x, h=bits, n=n: scp(x, huffman=h, differences=n), LEADS, 2.5, 500.0)
        for bits in (False, True)
        for n in (0, 1, 2)
    },
}
